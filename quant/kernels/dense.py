"""Products of bf16 matrices that are not quantized, where torch's own are slow on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import library
from .library import Kernels, Scratch, loaded

FEW_ROWS = 16
"""With more, a weight is no longer read faster than it is multiplied."""


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


def multiply(x: Tensor, weight: Tensor, kernels: Kernels) -> Tensor:
    """``x @ weight'`` for few rows, reading the weight once and as fast as memory gives it.

    Sums in float32, rounded once, as torch's own product does.

    Args:
        x: bf16 ``[..., K]``.
        weight: bf16 ``[N, K]``, contiguous.
        kernels: which ones.

    Returns:
        bf16 ``[..., N]``.

    Raises:
        ValueError: a type or shape is another.
    """
    if not x.dtype == weight.dtype == torch.bfloat16 or not weight.is_contiguous():
        raise ValueError(f"x is {x.dtype}, the weight {weight.dtype}; both must be bf16")
    if weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x is {tuple(x.shape)}, the weight {tuple(weight.shape)}")
    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    y = x.new_empty((*x.shape[:-1], len(weight)))
    loaded().vlpress_dense(
        kernels.handle,
        weight.data_ptr(),
        *weight.shape,
        rows.data_ptr(),
        len(rows),
        rows.stride(0),
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y


class Product:
    """What `torch.nn.functional.linear` gives without a bias, faster for few rows of bf16."""

    def __init__(self, kernels: Kernels) -> None:
        """Use these kernels where they pay."""
        self.kernels = kernels

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """``x @ weight'``, as `multiply` takes them or any others."""
        suits = (
            x.dtype == weight.dtype == torch.bfloat16
            and weight.device.type == "cpu"
            and weight.is_contiguous()
            and x.numel() <= FEW_ROWS * x.shape[-1]
            and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        )
        return multiply(x, weight, self.kernels) if suits else F.linear(x, weight)
