"""Products with unquantized bf16 matrices on the CPU, where torch's own are slow.

Letters: N = out_features, K = in_features.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cpu, library
from .library import Kernels, Scratch, require_library

GEMV_ROWS = 16
"""Most rows for `gemv`: with more, multiplying takes longer than reading the weight."""
WITHOUT_BF16_UNITS = ("avx512_vnni", "avx2")
"""Instruction sets on whose processors torch's bf16 products are several times slower than its
float32 ones."""
BF16_BITS = 16
"""`bits` of an unquantized weight, see `layout.h`."""


def syrk_(
    lower: Tensor, x: Tensor, kernels: Kernels, alpha: float = 1.0, beta: float = 1.0
) -> None:
    """Update the lower triangle: `lower = beta * lower + alpha * x' x` (BLAS: syrk).

    Above the diagonal the result is undefined. Products of bf16 numbers are exact in float32, in
    which they are summed.

    Args:
        lower: float32 `[K, K]`, contiguous, updated in place.
        x: bf16 `[tokens, K]`.
        kernels: the instruction set to use.
        alpha: factor of the product.
        beta: factor of the previous content.

    Raises:
        ValueError: a dtype or shape differs from these.
    """
    if x.dtype != torch.bfloat16 or lower.dtype != torch.float32 or not lower.is_contiguous():
        raise ValueError(
            f"x is {x.dtype}, lower {lower.dtype}; they must be bf16 and contiguous float32"
        )
    if x.dim() != 2 or lower.shape != (x.shape[1], x.shape[1]):
        raise ValueError(
            f"x is {tuple(x.shape)}, lower {tuple(lower.shape)}; "
            "they must be [tokens, K] and [K, K]"
        )
    if x.stride(1) != 1:
        x = x.contiguous()
    (tokens, k), threads = x.shape, torch.get_num_threads()
    compiled = require_library()
    scratch = Scratch(compiled.vlpress_syrk_scratch(kernels.handle, tokens, k, threads))
    compiled.vlpress_syrk(
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


def select_syrk(device: torch.device) -> Callable[[Tensor, Tensor, float, float], None] | None:
    """Select `syrk_` with the chosen kernels, or None where torch's product has to be used.

    Raises:
        ValueError: VLPRESS_KERNEL selects kernels that cannot run here.
    """
    kernels = library.chosen_kernels() if device.type == "cpu" else ""
    if isinstance(kernels, str):
        return None
    return lambda lower, x, alpha, beta: syrk_(lower, x, kernels, alpha, beta)


def gemv(x: Tensor, weight: Tensor, kernels: Kernels, bias: Tensor | None = None) -> Tensor:
    """Compute `x @ weight' + bias` for few rows, at the speed of reading the weight once.

    Sums are in float32 and rounded once, as in torch's product.

    Args:
        x: bf16 `[..., K]`.
        weight: bf16 `[N, K]`, contiguous.
        kernels: the instruction set to use.
        bias: bf16 `[N]`.

    Returns:
        bf16 `[..., N]`.

    Raises:
        ValueError: a dtype or shape differs from these.
    """
    rows, y, shift = _checked_arguments(x, weight, bias)
    require_library().vlpress_bf16_gemv(
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


def gemm(x: Tensor, weight: Tensor, kernels: Kernels, bias: Tensor | None = None) -> Tensor:
    """Compute as `gemv` does, for any number of rows.

    Panels of the weight are converted to float32 in the cache, so that no float32 copy of the whole
    weight is needed.
    """
    rows, y, shift = _checked_arguments(x, weight, bias)
    if not len(rows):
        return y
    (columns, k), threads, dtype = weight.shape, torch.get_num_threads(), cpu.DTYPE_CODES[x.dtype]
    shape = cpu.Shape(k, k, BF16_BITS)
    struct = cpu.Weight(
        weight.data_ptr(), None, None, None if shift is None else shift.data_ptr(), columns, 0, 0
    )
    size = require_library().vlpress_gemm_scratch(
        kernels.handle, ctypes.addressof(shape), dtype, len(rows), threads, False
    )
    cpu.gemm(kernels, (shape, ctypes.addressof(struct), 1), rows, [y], size)
    return y


def _checked_arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Check dtypes and shapes; return the rows of x, an empty result, and the float32 bias."""
    if not x.dtype == weight.dtype == torch.bfloat16 or not weight.is_contiguous():
        raise ValueError(
            f"x is {x.dtype}, the weight {weight.dtype}; both must be bf16, the weight contiguous"
        )
    if weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x is {tuple(x.shape)}, the weight {tuple(weight.shape)}; "
            "they must be [..., K] and [N, K]"
        )
    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    shift = None if bias is None else bias.detach().float()
    return rows, x.new_empty((*x.shape[:-1], len(weight))), shift


class Bf16Linear:
    """`torch.nn.functional.linear` with faster kernels for bf16 where they pay off."""

    def __init__(self, kernels: Kernels) -> None:
        """Use the kernels of this instruction set."""
        self.kernels = kernels
        self.uses_gemm = kernels.name in WITHOUT_BF16_UNITS
        """Whether `gemm` is faster than torch, for more than `GEMV_ROWS` rows."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute `x @ weight' + bias`; inputs that the kernels do not support go to torch."""
        few_rows = x.numel() <= GEMV_ROWS * x.shape[-1]
        supported = (
            x.dtype == weight.dtype == torch.bfloat16
            and weight.device.type == "cpu"
            and weight.is_contiguous()
            and (few_rows or self.uses_gemm)
            and not torch.compiler.is_compiling()  # raw pointers do not exist while tracing
            and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        )
        if not supported:
            return F.linear(x, weight, bias)
        multiply = gemv if few_rows else gemm
        return multiply(x, weight, self.kernels, bias)


def select_linear(device: torch.device) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Select a `Bf16Linear` of the chosen kernels, or torch's `linear` where there are none.

    Raises:
        ValueError: VLPRESS_KERNEL selects kernels that cannot run here.
    """
    kernels = library.chosen_kernels() if device.type == "cpu" else ""
    return F.linear if isinstance(kernels, str) else Bf16Linear(kernels)
