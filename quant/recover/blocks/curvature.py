"""Curvature of a block's loss in single weights, for steps that a solver's solution survives.

At the solution of GPTQ most weights have a gradient, and yet a change of a single integer costs
more than the gradient promises. Signed steps ignore that: they move all weights by the same amount
until many of them cross to the next integer together. The diagonal of the Gauss-Newton matrix says
what a crossing costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LEAST = 1e-12


def gauss_newton_diagonal(
    outputs: Callable[[int], Tensor],
    sizes: Callable[[int], float],
    samples: Sequence[int],
    parameters: Sequence[Tensor],
    generator: torch.Generator,
) -> list[Tensor]:
    """Estimate the diagonal of the Gauss-Newton matrix of the mean relative squared error.

    One random vector of signs per sample (Hutchinson's estimator), and a product of the means over
    rows and columns instead of single entries, which one vector leaves too noisy.

    Args:
        outputs: of a sample, differentiable.
        sizes: squared size of a sample's expected output.
        samples: numbers of the samples.
        parameters: `[N, G, width]` each.
        generator: of the signs, on the CPU.

    Returns:
        Positive tensors of the shapes of the parameters.
    """
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for sample in samples:
        with torch.enable_grad():
            output = outputs(sample).float()
            signs = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1
            projected = (output * signs).sum() / sizes(sample) ** 0.5
            gradients = torch.autograd.grad(projected, list(parameters))
        for total, gradient in zip(sums, gradients, strict=True):
            total += 2 * gradient.square() / len(samples)
    return [_product_of_means(total) for total in sums]


def _product_of_means(entries: Tensor) -> Tensor:
    matrix = entries.flatten(1)
    rows, columns = matrix.mean(1, keepdim=True), matrix.mean(0, keepdim=True)
    return (rows * columns / matrix.mean().clamp_min(LEAST)).clamp_min(LEAST).reshape(entries.shape)
