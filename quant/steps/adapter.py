"""Solve a layer together with its low-rank adapter, see `methods/low_rank.py`.

The order decides what the adapter holds. Fitted last ("eora", "svd"), it is the largest part
of the error that the quantized weight leaves. Fitted first ("svd_first"; SVDQuant: Li et al.,
"SVDQuant: Absorbing Outliers by Low-Rank Components for 4-Bit Diffusion Models", arXiv 2411.05007,
section 4.2), it takes the largest part of the weight, and the method quantizes what remains, which
has a smaller range. A transform such as smoothquant has scaled the weight before.

The adapter reads inputs that are not rounded, also beside weights whose inputs are. Hessians are
those of the rounded inputs, as the solvers need them; "eora" then minimizes the error of the same
rounded inputs, which is close to the error of the layer, not equal to it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from .step import Solved, Step

if TYPE_CHECKING:
    from torch import Tensor

    from ..methods.layer_inputs import LayerInputs
    from ..methods.low_rank import LowRank
    from ..recipe.adapter import AdapterRule

RELATIVE = ("error", "rtn_error", "final_error")
"""Values of `Solved` that are relative to the outputs of the weight that was quantized."""


def solve_with_adapter(
    step: Step,
    weight: Tensor,
    inputs: LayerInputs | None,
    *,
    clip: bool = False,
    fused_range: float | None = None,
) -> Solved:
    """Quantize a weight with the adapter that its step asks for; see `Step.solve`.

    Returns:
        The values of a calibrated layer with an adapter have in addition `adapter_error`, the error
        of the quantized weight and the adapter together. All errors are relative to the outputs of
        the whole weight.

    Raises:
        ValueError: see `Step.solve`, or a number of the adapter does not fit 16 bits.
    """
    rule = step.adapter_rule
    solve = partial(step.solve, inputs=inputs, clip=clip, fused_range=fused_range)
    if rule is None:
        return solve(weight)
    if not rule.comes_first:
        solved = solve(weight)
        target = weight if solved.target is None else solved.target
        hessian = inputs.hessian.values if inputs is not None and rule.kind == "eora" else None
        part = _part(weight, target, solved.weight.dequantize(), hessian, rule)
        return _with_errors(replace(solved, adapter=part), target, inputs)
    part = _part(weight, weight, None, None, rule)
    solved = replace(solve(weight.float() - part.matrix()), adapter=part)
    if inputs is not None:
        share = inputs.error(weight, part.matrix())
        relative = {key: solved.values[key] * share for key in RELATIVE if key in solved.values}
        solved = replace(solved, values={**solved.values, **relative})
    return _with_errors(solved, weight, inputs)


def quantized_part(step: Step, weight: Tensor) -> Tensor:
    """Return the part of a weight that is quantized: all of it, unless an adapter comes first."""
    rule = step.adapter_rule
    if rule is None or not rule.comes_first:
        return weight
    return weight.float() - _part(weight, weight, None, None, rule).matrix()


def adapter_macs(columns: int, rows: int) -> float:
    """Count the multiply-adds of finding the adapter of a layer `[rows, columns]`, in float32.

    The eigenvectors of the smaller side count 9 n^3 in float64, as two each; a layer with more
    outputs than inputs is factored first.
    """
    side = min(columns, rows)
    factored = 2 * rows * columns**2 if rows > columns else 0
    return factored + side * columns**2 + side**2 * columns + 18 * side**3


def solving_memory(step: Step, columns: int, rows: int, *, calibrated: bool) -> int:
    """Count the bytes of solving a layer with its adapter, see `Step.memory`."""
    memory = step.memory(columns, rows, calibrated=calibrated)
    if step.adapter_rule is None:
        return memory
    # The Hessian and its copy; the weight, the candidate, their difference and its product with
    # the Hessian in float32; the matrix of the smaller side and its eigenvectors in float64.
    hessians = 8 * columns**2 if calibrated else 0
    return max(memory, hessians + 16 * columns * rows + 32 * min(columns, rows) ** 2)


def _part(
    weight: Tensor,
    target: Tensor,
    approximation: Tensor | None,
    hessian: Tensor | None,
    rule: AdapterRule,
) -> LowRank:
    """Find the adapter in the dtype in which it is stored, which errors and residuals include."""
    from ..methods.low_rank import low_rank, stored_dtype_of

    return low_rank(target, approximation, hessian, rule.rank).to(stored_dtype_of(weight.dtype))


def _with_errors(solved: Solved, target: Tensor, inputs: LayerInputs | None) -> Solved:
    """Measure the error with the adapter, if the layer is calibrated."""
    assert solved.adapter is not None
    if inputs is None:
        return replace(solved, summary=f"{solved.summary}, with adapter", target=None)
    both = solved.weight.dequantize() + solved.adapter.matrix()
    error = inputs.error(target, both)
    values = {**solved.values, "adapter_error": error}
    summary = f"{solved.summary}, {error:.2e} with adapter"
    return replace(solved, values=values, summary=summary, target=None)
