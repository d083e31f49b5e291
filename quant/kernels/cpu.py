"""Products with quantized weights on the CPU: a thin wrapper around the C++ in `cpu/`.

The library holds the kernels of several instruction sets and picks the best one the processor has;
the environment variable VLPRESS_KERNEL names another (``avx512``, ``avx2``, ``portable``), or
``reference`` for none. Threads are those of torch's own OpenMP runtime, as many as
`torch.get_num_threads` says.

Letters: N = out_features, K = in_features, G = groups per row. The layout of prepacked weights is
drawn in `cpu/layout.h`.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files

import torch
import torch.nn.functional as F
from torch import Tensor

VARIABLE = "VLPRESS_KERNEL"
NAMES = ("avx512", "avx2", "portable")
UNWANTED = f"{VARIABLE} is reference"
LIBRARY = "libvlpress_cpu.so"
TILE, LANES = 64, 16
# Where the inputs of a step stand in a lane, from its lowest bits; see layout.h.
ORDER = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3)}
TYPES = {torch.float32: 0, torch.bfloat16: 1}
ALIGNMENT = 64


@dataclass(frozen=True)
class TiledWeight:
    """A prepacked weight."""

    packed: Tensor
    """uint8 ``[tiles, steps, 256]``."""
    scales: Tensor
    """``[tiles, G, 64]``, fp16 where that holds them exactly, else float32."""
    zero_points: Tensor | None
    """uint8 ``[tiles, G, 64]``; None if all are `zero`."""
    zero: int
    """The zero point of all, or the middle of the grid."""
    order: Tensor | None
    """int64 ``[K]``: which input stands at each place; None for their own order."""
    bits: int
    """As stored: 4 or 8."""
    out_features: int
    in_features: int
    group_size: int
    """Inputs per scale."""


class _Weight(ctypes.Structure):
    _fields_ = (
        ("packed", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zero_points", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("half_scales", ctypes.c_int32),
        ("zero", ctypes.c_int32),
    )


class _Shape(ctypes.Structure):
    _fields_ = (("k", ctypes.c_int64), ("group", ctypes.c_int64), ("bits", ctypes.c_int64))


@dataclass(frozen=True)
class Kernels:
    """Those of one instruction set."""

    handle: int
    """What the library knows them by."""
    name: str
    """Of `NAMES`."""


@functools.cache
def _library() -> ctypes.CDLL | str:
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
    library = _library()
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
    library = _library()
    return not isinstance(library, str) and bool(library.vlpress_has_threads())


def add_gram_(
    lower: Tensor, x: Tensor, kernels: Kernels, alpha: float = 1.0, beta: float = 1.0
) -> None:
    """``lower = beta * lower + alpha * x' x`` in its lower half; what lies above is undefined.

    Products of bf16 numbers are exact in float32, in which they are added.

    Args:
        lower: float32 ``[K, K]``, contiguous.
        x: bf16 ``[tokens, K]``.
        kernels: which ones.
        alpha: factor of the product.
        beta: factor of what is there.

    Raises:
        ValueError: a type or shape is another.
    """
    library = _library()
    assert not isinstance(library, str)
    if x.dtype != torch.bfloat16 or lower.dtype != torch.float32 or not lower.is_contiguous():
        raise ValueError(f"x is {x.dtype}, lower {lower.dtype}; they must be bf16 and float32")
    if x.dim() != 2 or lower.shape != (x.shape[1], x.shape[1]):
        raise ValueError(f"x is {tuple(x.shape)}, lower {tuple(lower.shape)}")
    if x.stride(1) != 1:
        x = x.contiguous()
    (tokens, k), threads = x.shape, torch.get_num_threads()
    size = library.vlpress_gram_scratch(kernels.handle, tokens, k, threads)
    scratch = torch.empty(size + ALIGNMENT, dtype=torch.uint8)
    library.vlpress_gram(
        kernels.handle,
        x.data_ptr(),
        tokens,
        k,
        x.stride(0),
        lower.data_ptr(),
        alpha,
        beta,
        -(-scratch.data_ptr() // ALIGNMENT) * ALIGNMENT,
        threads,
    )


def read_memory(memory: Tensor) -> int:
    """Read a contiguous tensor once, as fast as memory gives it: what weights can be read at.

    Args:
        memory: of a size in bytes that 64 divides.

    Returns:
        The sum of its 64-bit words, modulo 2**64.

    Raises:
        OSError: the kernels are not built.
    """
    library = _library()
    if isinstance(library, str):
        raise OSError(library)
    size = memory.numel() * memory.element_size()
    return int(library.vlpress_read(memory.data_ptr(), size, torch.get_num_threads()))


def why_not(
    in_features: int, bits: int, groups: int, group_index: Tensor | None = None
) -> str | None:
    """Why these kernels do not take a weight; None if they do.

    Args:
        in_features: K.
        bits: 2 to 8.
        groups: G.
        group_index: int32 ``[K]``, or None for consecutive groups.
    """
    inputs = len(ORDER[_stored(bits)])
    width = in_features // groups
    if in_features % inputs or width % inputs:
        return (
            f"groups of {width} of {in_features} inputs; the CPU kernels take multiples of {inputs}"
        )
    if group_index is not None and not bool((torch.bincount(group_index) == width).all()):
        return "the groups of its group index are of unequal size"
    return None


def prepack(
    integers: Tensor, scales: Tensor, zero_points: Tensor, bits: int, group_index: Tensor | None
) -> TiledWeight:
    """Bring a weight into tiles; see `why_not` for what fits.

    Args:
        integers: uint8 ``[N, K]``.
        scales: float ``[N, G]``.
        zero_points: uint8 ``[N, G]``.
        bits: 2 to 8.
        group_index: int32 ``[K]``, or None for consecutive groups.
    """
    rows, columns = integers.shape
    order = None if group_index is None else torch.argsort(group_index, stable=True)
    if order is not None:
        integers = integers[:, order]
    constant = int(zero_points[0, 0])
    same = bool((zero_points == constant).all())
    half = scales.to(torch.float16)
    exact = torch.equal(half.float(), scales.float())
    return TiledWeight(
        packed=_pack(integers, _stored(bits)),
        scales=_tile(half if exact else scales.float()),
        zero_points=None if same else _tile(zero_points),
        zero=constant if same else 1 << (bits - 1),
        order=order,
        bits=_stored(bits),
        out_features=rows,
        in_features=columns,
        group_size=columns // scales.shape[1],
    )


def restore(weight: TiledWeight) -> tuple[Tensor, Tensor, Tensor]:
    """Undo `prepack`.

    Returns:
        Integers, uint8 ``[N, K]``; scales, float32 ``[N, G]``; zero points, uint8 ``[N, G]``.
    """
    scales = _untile(weight.scales, weight.out_features).float()
    zeros = torch.full_like(scales, weight.zero, dtype=torch.uint8)
    if weight.zero_points is not None:
        zeros = _untile(weight.zero_points, weight.out_features)
    return _unpack(weight), scales, zeros


def _unpack(weight: TiledWeight) -> Tensor:
    bits, inputs = weight.bits, len(ORDER[weight.bits])
    lanes = weight.packed.reshape(-1, weight.in_features // inputs, 4, LANES, 4)
    values = torch.stack((lanes & 15, lanes >> 4), -1).flatten(-2) if bits == 4 else lanes
    places = torch.argsort(torch.tensor(ORDER[bits]))
    columns = values[..., places].permute(0, 2, 3, 1, 4).reshape(-1, weight.in_features)
    integers = columns[: weight.out_features]
    if weight.order is None:
        return integers.contiguous()
    restored = torch.empty_like(integers)
    restored[:, weight.order] = integers
    return restored


def _untile(grid: Tensor, rows: int) -> Tensor:
    return grid.transpose(1, 2).reshape(-1, grid.shape[1])[:rows].contiguous()


def _stored(bits: int) -> int:
    return 4 if bits <= 4 else 8


def _pack(integers: Tensor, bits: int) -> Tensor:
    inputs = len(ORDER[bits])
    padded = F.pad(integers, (0, 0, 0, -len(integers) % TILE))
    steps = padded.shape[1] // inputs
    lanes = padded.reshape(-1, 4, LANES, steps, inputs)[..., list(ORDER[bits])]
    if bits == 4:
        lanes = lanes[..., 0::2] | (lanes[..., 1::2] << 4)
    return lanes.permute(0, 3, 1, 2, 4).reshape(-1, steps, 256)


def _tile(grid: Tensor) -> Tensor:
    padded = F.pad(grid, (0, 0, 0, -len(grid) % TILE))
    return padded.reshape(-1, TILE, grid.shape[1]).transpose(1, 2).contiguous()


class Product:
    """One or more weights that multiply the same input in one call."""

    def __init__(
        self, weights: Sequence[TiledWeight], biases: Sequence[Tensor | None], kernels: Kernels
    ) -> None:
        """Note where everything lies.

        Args:
            weights: of the same in_features, bits, group size and order.
            biases: ``[N]`` or None, one for each.
            kernels: which ones.
        """
        first = weights[0]
        self.order = first.order
        self.widths = [weight.out_features for weight in weights]
        # The library reads these while it runs: they must live as long as this.
        self._weights = tuple(weights)
        self._biases = [None if bias is None else bias.detach().float() for bias in biases]
        self._shape = _Shape(first.in_features, first.group_size, first.bits)
        self._array = (_Weight * len(weights))(
            *(_describe(w, b) for w, b in zip(weights, self._biases, strict=True))
        )
        self.kernels, self.name = kernels, kernels.name
        self._outputs = ctypes.c_void_p * len(weights)
        self._scratch: dict[tuple[int, int, int, bool], int] = {}
        library = _library()
        assert not isinstance(library, str)
        self._call, self._bytes = library.vlpress_products, library.vlpress_scratch

    def __call__(self, x: Tensor, input_scale: float | None = None) -> list[Tensor]:
        """``x @ W' + bias`` for each weight.

        Args:
            x: ``[..., K]`` float; types other than bf16 go through float32.
            input_scale: None multiplies `x` as it is; else it is rounded to int8, by this scale,
                or if it is 0 by a scale for each row (``absmax / 127``).

        Returns:
            ``[..., N]`` for each weight, in the dtype of `x`.

        Raises:
            RuntimeError: a gradient is asked for; there is none.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("quantized layers on CPU kernels have no gradient; use no_grad()")
        if x.dtype not in TYPES:
            return [out.to(x.dtype) for out in self(x.float(), input_scale)]
        outputs = [x.new_empty((*x.shape[:-1], width)) for width in self.widths]
        self.into(x, outputs, input_scale)
        return outputs

    def into(self, x: Tensor, outputs: Sequence[Tensor], input_scale: float | None = None) -> None:
        """As a call, into given memory.

        Args:
            x: ``[..., K]``, bf16 or float32.
            outputs: contiguous ``[..., N]`` for each weight, of the dtype of `x`.
            input_scale: as in a call.
        """
        if self.order is not None:
            x = x.index_select(-1, self.order)
        rows = x.reshape(-1, x.shape[-1])
        if rows.stride(-1) != 1:
            rows = rows.contiguous()
        count, kind, threads = len(rows), TYPES[x.dtype], torch.get_num_threads()
        if count == 0:
            return
        key = (count, kind, threads, input_scale is not None)
        if key not in self._scratch:
            self._scratch[key] = self._bytes(
                self.kernels.handle, ctypes.addressof(self._shape), kind, count, threads, key[3]
            )
        scratch = torch.empty(self._scratch[key] + ALIGNMENT, dtype=torch.uint8)
        self._call(
            self.kernels.handle,
            ctypes.addressof(self._shape),
            ctypes.addressof(self._array),
            len(outputs),
            kind,
            rows.data_ptr(),
            count,
            rows.stride(0),
            self._outputs(*(out.data_ptr() for out in outputs)),
            -(-scratch.data_ptr() // ALIGNMENT) * ALIGNMENT,
            threads,
            -1.0 if input_scale is None else input_scale,
        )


def _describe(weight: TiledWeight, bias: Tensor | None) -> _Weight:
    zeros = weight.zero_points
    return _Weight(
        weight.packed.data_ptr(),
        weight.scales.data_ptr(),
        None if zeros is None else zeros.data_ptr(),
        None if bias is None else bias.data_ptr(),
        weight.out_features,
        weight.scales.dtype == torch.float16,
        weight.zero,
    )
