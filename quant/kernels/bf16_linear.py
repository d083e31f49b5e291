"""Products of bf16 matrices that are not quantized, where torch's own are slow on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cpu, library
from .library import Kernels, Scratch, loaded

FEW_ROWS = 16
"""With more, a weight is no longer read faster than it is multiplied."""
WITHOUT_BF16 = ("avx512_vnni", "avx2")
"""Kernels of processors on which torch multiplies bf16 several times slower than float32."""
STORED = 16
"""Bits of a weight that is not quantized, see layout.h."""


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
    if x.dtype != torch.bfloat16 or lower.dtype != torch.float32 or not lower.is_contiguous():
        raise ValueError(f"x is {x.dtype}, lower {lower.dtype}; they must be bf16 and float32")
    if x.dim() != 2 or lower.shape != (x.shape[1], x.shape[1]):
        raise ValueError(f"x is {tuple(x.shape)}, lower {tuple(lower.shape)}")
    if x.stride(1) != 1:
        x = x.contiguous()
    (tokens, k), threads = x.shape, torch.get_num_threads()
    library = loaded()
    scratch = Scratch(library.vlpress_gram_scratch(kernels.handle, tokens, k, threads))
    library.vlpress_gram(
        kernels.handle,
        x.data_ptr(),
        tokens,
        k,
        x.stride(0),
        lower.data_ptr(),
        alpha,
        beta,
        scratch.address,
        threads,
    )


def gram_on(device: torch.device) -> Callable[[Tensor, Tensor, float, float], None] | None:
    """`add_gram_` with the chosen kernels; None where torch's own product has to do.

    Raises:
        ValueError: VLPRESS_KERNEL asks for what cannot run here.
    """
    kernels = library.chosen_kernels() if device.type == "cpu" else ""
    if isinstance(kernels, str):
        return None
    return lambda lower, x, alpha, beta: add_gram_(lower, x, kernels, alpha, beta)


def multiply_few(x: Tensor, weight: Tensor, kernels: Kernels, bias: Tensor | None = None) -> Tensor:
    """``x @ weight' + bias`` for few rows, reading the weight once and as fast as memory gives it.

    Sums in float32, rounded once, as torch's own product does.

    Args:
        x: bf16 ``[..., K]``.
        weight: bf16 ``[N, K]``, contiguous.
        kernels: which ones.
        bias: bf16 ``[N]``.

    Returns:
        bf16 ``[..., N]``.

    Raises:
        ValueError: a type or shape is another.
    """
    rows, y, shift = _prepared(x, weight, bias)
    loaded().vlpress_dense(
        kernels.handle,
        weight.data_ptr(),
        None if shift is None else shift.data_ptr(),
        *weight.shape,
        rows.data_ptr(),
        len(rows),
        rows.stride(0),
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y


def multiply_many(
    x: Tensor, weight: Tensor, kernels: Kernels, bias: Tensor | None = None
) -> Tensor:
    """As `multiply_few`, for any number of rows: in float32, a part of the weight at a time."""
    rows, y, shift = _prepared(x, weight, bias)
    if not len(rows):
        return y
    (columns, k), threads, kind = weight.shape, torch.get_num_threads(), cpu.TYPES[x.dtype]
    shape = cpu.Shape(k, k, STORED)
    described = cpu.Weight(
        weight.data_ptr(), None, None, None if shift is None else shift.data_ptr(), columns, 0, 0
    )
    size = loaded().vlpress_scratch(
        kernels.handle, ctypes.addressof(shape), kind, len(rows), threads, False
    )
    cpu.call(kernels, (shape, ctypes.addressof(described), 1), rows, [y], size)
    return y


def _prepared(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows of x, memory for the result, and the bias in float32."""
    if not x.dtype == weight.dtype == torch.bfloat16 or not weight.is_contiguous():
        raise ValueError(f"x is {x.dtype}, the weight {weight.dtype}; both must be bf16")
    if weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x is {tuple(x.shape)}, the weight {tuple(weight.shape)}")
    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    shift = None if bias is None else bias.detach().float()
    return rows, x.new_empty((*x.shape[:-1], len(weight))), shift


class Product:
    """What `torch.nn.functional.linear` gives, faster where torch's own is slow for bf16."""

    def __init__(self, kernels: Kernels) -> None:
        """Use these kernels where they pay."""
        self.kernels = kernels
        self.takes_many = kernels.name in WITHOUT_BF16
        """Whether more than `FEW_ROWS` rows pay too."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x @ weight' + bias``, as `multiply_few` takes them or any others."""
        few = x.numel() <= FEW_ROWS * x.shape[-1]
        suits = (
            x.dtype == weight.dtype == torch.bfloat16
            and weight.device.type == "cpu"
            and weight.is_contiguous()
            and (few or self.takes_many)
            and not torch.compiler.is_compiling()  # which sees no memory to hand on
            and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        )
        if not suits:
            return F.linear(x, weight, bias)
        multiply = multiply_few if few else multiply_many
        return multiply(x, weight, self.kernels, bias)


def product_on(device: torch.device) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """A `Product` of the chosen kernels; torch's own elsewhere, and where there are none.

    Raises:
        ValueError: VLPRESS_KERNEL asks for what cannot run here.
    """
    kernels = library.chosen_kernels() if device.type == "cpu" else ""
    return F.linear if isinstance(kernels, str) else Product(kernels)
