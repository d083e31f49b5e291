"""Experts and routers in a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Any

from ..driver.experts import EXPERT_TOKENS
from ..recipe.scheme import Scheme

if TYPE_CHECKING:
    from ...model.families import LinearSpec
    from ..recipe.recipe import Recipe
    from .plan import PlanRow


def scheme_label(scheme: Scheme | None) -> str:
    """Describe a scheme; None: the layer is kept."""
    return scheme.label if scheme else "kept"


def insert_kept(rows: Sequence[PlanRow], kept: Sequence[PlanRow]) -> tuple[PlanRow, ...]:
    """Insert the rows of layers that are never quantized before the experts of their blocks.

    Those of blocks without other rows follow at the end.
    """
    of_blocks: dict[tuple[str, int], list[PlanRow]] = {}
    for row in kept:
        of_blocks.setdefault((row.spec.stage, row.spec.block), []).append(row)
    result: list[PlanRow] = []
    for block, members in groupby(rows, key=lambda row: (row.spec.stage, row.spec.block)):
        of_block = list(members)
        before = list(takewhile(lambda row: row.spec.expert is None, of_block))
        result += [*before, *of_blocks.pop(block, ()), *of_block[len(before) :]]
    return (*result, *(row for rest in of_blocks.values() for row in rest))


def take_all_tokens(specs: Sequence[LinearSpec], recipe: Recipe) -> list[LinearSpec]:
    """Return the layers of a model whose experts see all tokens while calibrating.

    Raises:
        ValueError: there are no experts.
    """
    if all(spec.expert is None for spec in specs):
        raise ValueError(
            f"recipe {recipe.name}: calibration.all_experts is true; allowed: false, because this "
            "model has no experts"
        )
    return [replace(spec, token_share=1.0) for spec in specs]


def check_experts(rows: Sequence[PlanRow], *, all_tokens: bool) -> None:
    """Refuse what cannot be done to experts, whose inputs are the tokens routed to them.

    Raises:
        ValueError: the experts of a layer have several schemes, or one needs a statistic that
            experts do not have.
    """
    blocks: dict[str, dict[Scheme | None, PlanRow]] = {}
    for row in rows:
        step, weight = row.step, row.spec.slice
        if weight is None:
            continue
        of_block = blocks.setdefault(weight.tensor.rpartition(".")[0], {})
        of_block.setdefault(step.scheme if step else None, row)
        if step is not None and step.scheme.activations == "static":
            raise ValueError(
                f"{row.name} is an expert, for which activations are static; allowed: none, "
                "dynamic (engines quantize the inputs of experts per token)"
            )
        if step is not None and step.scheme.calibrates_input:
            raise ValueError(
                f"{row.name} is an expert, for which {step.scheme.label} have a calibrated scale; "
                "allowed: activations none (an expert may see no token in calibration)"
            )
        if step is not None and step.uses_float_model and not all_tokens:
            raise ValueError(
                f"{row.name} is an expert, for which method {step.method} compares inputs with the "
                "float model's, where other tokens may reach it; set all_experts in [calibration], "
                "or use gptq or rtn"
            )
    for block, schemes in blocks.items():
        if len(schemes) > 1:
            listed = ", ".join(f"{row.name}: {scheme_label(s)}" for s, row in schemes.items())
            raise ValueError(
                f"{block} has experts of {len(schemes)} schemes ({listed}), but engines compute "
                "gate, up and down of all experts of a layer in one kernel; give all of them one "
                "scheme, or ignore all"
            )


def expected_tokens(rows: Sequence[PlanRow], tokens: int) -> dict[str, Any] | None:
    """Estimate the calibration tokens of an expert, as plain data.

    Args:
        rows: of the plan.
        tokens: of all calibration samples.

    Returns:
        `layers` and `experts` are the numbers of calibrated layers of experts and of experts in
        each of them, `tokens` the mean number of an expert's tokens, and `floor` the number below
        which an expert is rounded. None: no expert is calibrated.
    """
    calibrated = [row for row in rows if row.spec.slice and row.step and row.step.uses_activations]
    if not calibrated:
        return None
    last = calibrated[-1]
    return {
        "layers": len({row.spec.block for row in calibrated}),
        "experts": 1 + max(row.spec.expert or 0 for row in calibrated),
        "tokens": last.spec.token_share * tokens,
        "floor": EXPERT_TOKENS,
    }
