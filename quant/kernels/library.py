"""The compiled CPU kernels: C++ in `cpu/`, called through ctypes.

The library holds the kernels of several instruction sets and picks the best one the processor has;
the environment variable VLPRESS_KERNEL names another (``avx512``, ``avx512_vnni``, ``avx2``,
``portable``), or
``reference`` for none. Threads are those of torch's own OpenMP runtime, as many as
`torch.get_num_threads` says.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from dataclasses import dataclass
from importlib.resources import as_file, files

import torch
from torch import Tensor

VARIABLE = "VLPRESS_KERNEL"
NAMES = ("avx512", "avx512_vnni", "avx2", "portable")
UNWANTED = f"{VARIABLE} is reference"
LIBRARY = "libvlpress_cpu.so"
KEPT = 2**26  # bytes of working memory at most that a thread keeps
ALIGNMENT = 64


@dataclass(frozen=True)
class Kernels:
    """Those of one instruction set."""

    handle: int
    """What the library knows them by."""
    name: str
    """Of `NAMES`."""


@functools.cache
def load() -> ctypes.CDLL | str:
    """The compiled library, or why there is none."""
    try:
        with as_file(files(__package__) / LIBRARY) as path:
            library = ctypes.CDLL(str(path))
    except OSError as error:
        return f"the CPU kernels are not built ({error})"
    pointer, wide = ctypes.c_void_p, ctypes.c_int64
    library.vlpress_kernels.restype = pointer
    library.vlpress_kernels.argtypes = [ctypes.c_char_p]
    library.vlpress_name.restype = ctypes.c_char_p
    library.vlpress_name.argtypes = [pointer]
    library.vlpress_has_threads.restype = ctypes.c_int
    library.vlpress_gram_scratch.restype = wide
    library.vlpress_gram_scratch.argtypes = [pointer, wide, wide, ctypes.c_int]
    library.vlpress_gram.restype = None
    library.vlpress_gram.argtypes = [
        *(pointer, pointer, wide, wide, wide, pointer, ctypes.c_float, ctypes.c_float),
        *(pointer, ctypes.c_int),
    ]
    library.vlpress_dense.restype = None
    library.vlpress_dense.argtypes = [
        *(pointer, pointer, pointer, wide, wide, pointer, wide, wide, pointer, ctypes.c_int)
    ]
    library.vlpress_block_scratch.restype = wide
    library.vlpress_block_scratch.argtypes = [pointer, pointer, wide, ctypes.c_int]
    library.vlpress_enter.restype = None
    library.vlpress_enter.argtypes = [*(pointer, pointer, wide), *(pointer,) * 5, ctypes.c_int]
    library.vlpress_attends_prompts.restype = ctypes.c_int
    library.vlpress_attends_prompts.argtypes = [pointer]
    library.vlpress_prompts_scratch.restype = wide
    library.vlpress_prompts_scratch.argtypes = [pointer, ctypes.c_int]
    for attend in (library.vlpress_attend_newest, library.vlpress_attend_prompts):
        attend.restype = None
        attend.argtypes = [pointer, pointer, ctypes.c_int]
    library.vlpress_leave.restype = None
    library.vlpress_leave.argtypes = [*(pointer, pointer, wide), *(pointer,) * 3, ctypes.c_int]
    library.vlpress_read.restype = ctypes.c_uint64
    library.vlpress_read.argtypes = [pointer, wide, ctypes.c_int]
    library.vlpress_scratch.restype = wide
    library.vlpress_scratch.argtypes = [
        *(pointer, pointer, ctypes.c_int, wide, ctypes.c_int, ctypes.c_int)
    ]
    library.vlpress_products.restype = None
    library.vlpress_products.argtypes = [
        *(pointer, pointer, pointer, ctypes.c_int, ctypes.c_int, pointer, wide, wide, pointer),
        *(pointer, ctypes.c_int, ctypes.c_float),
    ]
    return library


@functools.cache
def find_kernels(name: str = "") -> Kernels | str:
    """An instruction set's kernels, or why there are none.

    Args:
        name: of `NAMES`, or empty for the best one.
    """
    library = load()
    if isinstance(library, str):
        return library
    handle = library.vlpress_kernels(name.encode())
    if handle is None:
        return f"this processor, or this build, has no {name} kernels"
    return Kernels(handle, library.vlpress_name(handle).decode())


def chosen_kernels() -> Kernels | str:
    """What `find_kernels` gives for the environment's choice.

    Raises:
        ValueError: VLPRESS_KERNEL names something else, or kernels that cannot run here.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "reference":
        return UNWANTED
    if wanted not in ("", *NAMES):
        raise ValueError(f"{VARIABLE} is {wanted!r}; it can be {', '.join(NAMES)} or reference")
    found = find_kernels(wanted)
    if wanted and isinstance(found, str):
        raise ValueError(f"{VARIABLE} is {wanted}: {found}")
    return found


def has_threads() -> bool:
    """Whether the kernels found torch's OpenMP runtime; without it they run on one thread."""
    library = load()
    return not isinstance(library, str) and bool(library.vlpress_has_threads())


def read_memory(memory: Tensor) -> int:
    """Read a contiguous tensor once, as fast as memory gives it: what weights can be read at.

    Args:
        memory: of a size in bytes that 64 divides.

    Returns:
        The sum of its 64-bit words, modulo 2**64.

    Raises:
        OSError: the kernels are not built.
    """
    library = load()
    if isinstance(library, str):
        raise OSError(library)
    size = memory.numel() * memory.element_size()
    return int(library.vlpress_read(memory.data_ptr(), size, torch.get_num_threads()))


def loaded() -> ctypes.CDLL:
    """The library, where `Kernels` show that there is one."""
    library = load()
    assert not isinstance(library, str)
    return library


_kept = threading.local()


class Scratch:
    """Working memory of a call, aligned to cache lines.

    A thread's last one is kept for its next call: memory that is asked for anew is handed out in
    pages that have to be cleared first. Only one may be in use in a thread at a time.
    """

    def __init__(self, size: int) -> None:
        """Take `size` bytes."""
        memory: Tensor | None = getattr(_kept, "memory", None)
        if memory is None or len(memory) < size + ALIGNMENT:
            memory = torch.empty(size + ALIGNMENT, dtype=torch.uint8)
            if size <= KEPT:
                _kept.memory = memory
        self._memory = memory
        self.address = -(-self._memory.data_ptr() // ALIGNMENT) * ALIGNMENT
