"""Low-rank adapters in a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ....model.families import EMBEDDING
from ...recipe.adapter import adapter_entry

if TYPE_CHECKING:
    from ...recipe.recipe import Recipe
    from ...steps.step import Step
    from ..plan import PlanRow


def check_adapters(rows: Sequence[PlanRow], recipe: Recipe, embedding: Step | None) -> None:
    """Refuse adapters that engines cannot hold.

    Args:
        rows: of all linear layers.
        recipe: the recipe.
        embedding: step of the token embedding; None if it is not quantized.

    Raises:
        ValueError: the ranks differ or exceed a layer, or a layer with an adapter is an expert, is
            carried along, or is the token embedding.
    """
    rules = {step.adapter_rule for step in recipe.steps if step.adapter_rule is not None}
    if len(ranks := sorted({rule.rank for rule in rules})) > 1:
        raise ValueError(
            f"recipe {recipe.name}: steps have adapter_rank {' and '.join(map(str, ranks))}; "
            "allowed: one rank for all steps, because engines hold no other"
        )
    if embedding is not None and embedding.adapter_rule is not None:
        raise ValueError(
            f"recipe {recipe.name}: {EMBEDDING} has adapter_rank, but its rows are looked up; "
            "allowed: adapter_rank in steps of linear layers"
        )
    for row in rows:
        rule = row.step.adapter_rule if row.step else None
        if rule is None:
            continue
        most = min(row.spec.in_features, row.spec.out_features)
        problem = ""
        if row.spec.expert is not None:
            problem = "is an expert, and engines fuse the experts of a layer, beside which they"
        elif row.spec.part == "mtp":
            problem = "is in the module for multi-token prediction, beside which engines"
        if problem:
            raise ValueError(
                f"recipe {recipe.name}: {row.name} {problem} load no adapter; give it a step "
                "without adapter_rank"
            )
        if rule.rank > most:
            raise ValueError(
                f"recipe {recipe.name}: adapter_rank is {rule.rank}, and {row.name} is "
                f"{row.spec.out_features} x {row.spec.in_features}; allowed: at most {most}"
            )


def describe_adapters(rows: Sequence[PlanRow]) -> dict[str, Any] | None:
    """Describe the adapters of all layers, see `adapter_entry`; None if there are none."""
    adapted = [(row, row.step.adapter_rule) for row in rows if row.step and row.step.adapter_rule]
    rules = [rule for _, rule in adapted if rule is not None]
    if not rules:
        return None
    sizes = {row.name: row.adapter_bytes for row, _ in adapted}
    weights = sum(row.spec.weights for row, _ in adapted)
    return adapter_entry(rules[0].rank, sizes, weights, [rule.kind for rule in rules])
