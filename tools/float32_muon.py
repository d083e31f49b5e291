"""Newton-Schulz iteration of torch's Muon in float32, for processors without bf16 units.

torch computes the iteration in bf16. Without AVX512-BF16 or AMX products in bf16 are emulated, and
the optimizer takes most of the time of a training step (docs/log.md, 2026-11-30).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import _muon


def has_bf16_units() -> bool:
    """Whether the processor multiplies matrices of bf16 without emulation."""
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def orthogonalized(
    grad: Tensor, ns_coefficients: tuple[float, float, float], ns_steps: int, eps: float
) -> Tensor:
    """Quintic Newton-Schulz iteration (Jordan et al., Muon, 2024), with the names of torch's.

    Args:
        grad: `[rows, columns]` of any float dtype.
        ns_coefficients: a, b, c of x -> a x + b x^3 + c x^5 on the singular values.
        ns_steps: number of iterations.
        eps: lower bound of the norm that the gradient is divided by.

    Returns:
        `[rows, columns]` in float32, with singular values near 1.
    """
    a, b, c = ns_coefficients
    is_tall = grad.shape[0] > grad.shape[1]
    x = grad.float()
    x = x.t() if is_tall else x  # the Gram matrix of the shorter side is smaller
    x = x / x.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = x @ x.t()
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.t() if is_tall else x


def install() -> None:
    """Let every `torch.optim.Muon` of this process iterate in float32."""
    _muon._zeropower_via_newtonschulz = orthogonalized
