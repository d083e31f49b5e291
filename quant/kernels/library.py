"""The compiled CPU kernels: C++ in `cpu/`, called through ctypes.

The library contains kernels for several instruction sets and uses the best one that the processor
supports. The environment variable VLPRESS_KERNEL selects another (`avx512`, `avx512_vnni`, `avx2`,
`portable`), or `reference` for none. The kernels run on the threads of torch's OpenMP runtime,
`torch.get_num_threads()` of them.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable

import torch
from torch import Tensor

VARIABLE = "VLPRESS_KERNEL"
NAMES = ("avx512", "avx512_vnni", "avx2", "portable")
REFERENCE_REQUESTED = f"{VARIABLE} is reference"
LIBRARY = "libvlpress_cpu.so"
MAX_CACHED_BYTES = 2**26
"""Largest scratch memory that a thread keeps between calls."""
ALIGNMENT = 64  # bytes of a cache line, and of an AVX-512 register


@dataclass(frozen=True)
class Kernels:
    """The kernels of one instruction set."""

    handle: int
    """Address of their table in the library."""
    name: str
    """One of `NAMES`."""


@functools.cache
def load_library() -> ctypes.CDLL | str:
    """Load the compiled library.

    Returns:
        The library, or the reason why it cannot be loaded.

    Raises:
        OSError: it was compiled from other sources than those beside this file, so that the two
            may disagree about arguments, and results would be wrong.
    """
    try:
        with as_file(files(__package__) / LIBRARY) as path:
            library = ctypes.CDLL(str(path))
    except OSError as error:
        return f"the CPU kernels are not built ({error})"
    check_sources(library, files(__package__) / "cpu")
    # Without argtypes ctypes passes Python integers as 32-bit C ints, which truncates addresses.
    pointer, int64, int32, float32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
    signatures = {
        "find_kernels": (pointer, [ctypes.c_char_p]),
        "kernels_name": (ctypes.c_char_p, [pointer]),
        "has_threads": (int32, []),
        "set_memory_streams": (int32, [int32]),
        "read_memory": (ctypes.c_uint64, [pointer, int64, int32]),
        "gemm_scratch": (int64, [pointer, pointer, int32, int64, int32, int32]),
        "gemm": (
            None,
            [
                *(pointer, pointer, pointer, int32, int32, pointer, int64, int64, pointer),
                *(pointer, int32, float32),
            ],
        ),
        "syrk_scratch": (int64, [pointer, int64, int64, int32]),
        "syrk": (
            None,
            [pointer, pointer, int64, int64, int64, pointer, float32, float32, pointer, int32],
        ),
        "bf16_gemv": (
            None,
            [pointer, pointer, pointer, int64, int64, pointer, int64, int64, pointer, int32],
        ),
        "decoder_layer_scratch": (int64, [pointer, pointer, int64, int32]),
        "pre_attention": (None, [pointer, pointer, int64, *(pointer,) * 5, int32]),
        "post_attention": (None, [pointer, pointer, int64, *(pointer,) * 3, int32]),
        "decode_attention": (None, [pointer, pointer, int32]),
        "delta_rule": (None, [pointer, pointer, int32]),
        "has_prefill_attention": (int32, [pointer]),
        "prefill_attention_scratch": (int64, [pointer, int32]),
        "prefill_attention": (None, [pointer, pointer, int32]),
    }
    for name, (restype, argtypes) in signatures.items():
        function = getattr(library, f"vlpress_{name}")
        function.restype, function.argtypes = restype, argtypes
    return library


def check_sources(library: ctypes.CDLL, folder: Traversable) -> None:
    """Check that a library was compiled from the sources in a folder.

    An installed package contains no sources, and nothing is checked; a working copy does, and they
    change with every update while the library stays as it was compiled.

    Raises:
        OSError: it was compiled from others.
    """
    expected = sources_digest(folder)
    if expected is None:
        return
    try:
        library.vlpress_sources.restype = ctypes.c_char_p
        found = library.vlpress_sources().decode()
    except AttributeError:
        found = "unknown"
    if found != expected:
        raise OSError(
            f"the CPU kernels were compiled from other sources (digest {found[:12]}) than those of "
            f"this working copy ({expected[:12]}); compile them again: pip install -e ."
        )


def sources_digest(folder: Traversable) -> str | None:
    """SHA-256 of the list of a folder's C++ files and their digests, as CMakeLists.txt computes it.

    Returns:
        64 hexadecimal digits; None if the folder contains no C++ files.
    """
    if not folder.is_dir():
        return None
    sources = [file for file in folder.iterdir() if file.name.endswith((".cpp", ".h"))]
    lines = [
        f"{file.name} {sha256(file.read_bytes()).hexdigest()}\n"
        for file in sorted(sources, key=lambda file: file.name)
    ]
    return sha256("".join(lines).encode()).hexdigest() if lines else None


@functools.cache
def find_kernels(name: str = "") -> Kernels | str:
    """Find an instruction set's kernels.

    Args:
        name: one of `NAMES`, or empty for the best available.

    Returns:
        The kernels, or the reason why there are none.
    """
    library = load_library()
    if isinstance(library, str):
        return library
    handle = library.vlpress_find_kernels(name.encode())
    if handle is None:
        return f"this processor, or this build, has no {name} kernels"
    return Kernels(handle, library.vlpress_kernels_name(handle).decode())


def chosen_kernels() -> Kernels | str:
    """Find the kernels that VLPRESS_KERNEL selects, or the best available.

    Returns:
        The kernels, or the reason why there are none.

    Raises:
        ValueError: VLPRESS_KERNEL is an unknown name, or kernels that cannot run here.
    """
    name = os.environ.get(VARIABLE, "")
    if name == "reference":
        return REFERENCE_REQUESTED
    if name not in ("", *NAMES):
        raise ValueError(f"{VARIABLE} is {name!r}; it can be {', '.join(NAMES)} or reference")
    kernels = find_kernels(name)
    if name and isinstance(kernels, str):
        raise ValueError(f"{VARIABLE} is {name}: {kernels}")
    return kernels


def has_threads() -> bool:
    """Whether the kernels use torch's OpenMP runtime; without it they run on one thread."""
    library = load_library()
    return not isinstance(library, str) and bool(library.vlpress_has_threads())


def read_memory(memory: Tensor) -> int:
    """Read a contiguous tensor once, at full memory bandwidth.

    Args:
        memory: size in bytes a multiple of 64.

    Returns:
        The sum of its 64-bit words, modulo 2**64.

    Raises:
        OSError: the kernels are not built.
    """
    library = load_library()
    if isinstance(library, str):
        raise OSError(library)
    size = memory.numel() * memory.element_size()
    return int(library.vlpress_read_memory(memory.data_ptr(), size, torch.get_num_threads()))


def require_library() -> ctypes.CDLL:
    """The library, for callers that hold `Kernels` of it."""
    library = load_library()
    assert not isinstance(library, str)
    return library


_cached = threading.local()


class Scratch:
    """Scratch memory of one call, aligned to cache lines.

    Each thread keeps its last buffer for the next call: a fresh allocation of this size comes as
    new pages, which the operating system clears at first touch. Hence only one `Scratch` may be in
    use per thread at a time.
    """

    def __init__(self, size: int) -> None:
        """Reserve `size` bytes."""
        memory: Tensor | None = getattr(_cached, "memory", None)
        if memory is None or len(memory) < size + ALIGNMENT:
            memory = torch.empty(size + ALIGNMENT, dtype=torch.uint8)
            if size <= MAX_CACHED_BYTES:
                _cached.memory = memory
        self._memory = memory
        self.address = -(-self._memory.data_ptr() // ALIGNMENT) * ALIGNMENT
