"""The result of a search as plain data, as the head of a recipe, and as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from ...common.progress import format_bytes

if TYPE_CHECKING:
    from ...quant.plan.plan import Plan
    from ...quant.search.budget import Budget, Solution
    from ...quant.search.knapsack import Table
    from .run import Scored

Result = Mapping[str, Any]


def describe(
    scored: Scored, solution: Solution, times: Table | None, budget: Budget, plan: Plan
) -> dict[str, Any]:
    """Describe a solution as plain data.

    Args:
        scored: predicted losses.
        solution: the best choices.
        times: milliseconds of every choice of every group; None: not measured.
        budget: the limits.
        plan: of the recipe.
    """
    sizes = scored.space.choice_bytes(solution.padding)
    groups = []
    for number, (group, picked) in enumerate(
        zip(scored.space.groups, solution.chosen, strict=True)
    ):
        choices = [
            {
                "label": choice.label,
                "loss": scored.losses[number][index],
                "bytes": sizes[number][index],
                **({} if times is None else {"milliseconds": times[number][index]}),
            }
            for index, choice in enumerate(group.choices)
        ]
        groups.append(
            {
                "name": group.name,
                "part": group.part,
                "choice": choices[picked]["label"],
                "loss": choices[picked]["loss"],
                "bytes": choices[picked]["bytes"],
                "choices": choices,
            }
        )
    return {
        "budget": {
            "bytes": budget.bytes,
            "bits": budget.bits,
            "milliseconds": budget.milliseconds,
            "keep": budget.keep,
        },
        "loss": solution.loss,
        "bytes": solution.bytes,
        "bits": solution.bits,
        "milliseconds": solution.milliseconds,
        "kept": solution.kept,
        "base_bytes": plan.base_bytes,
        "base_parts": dict(plan.source_parts),
        "parts": plan.candidate_parts,
        "groups": groups,
        "check": scored.check,
    }


def counts(result: Result) -> list[dict[str, Any]]:
    """Count the groups of each part by choice, with their bytes and predicted loss."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for group in result["groups"]:
        row = rows.setdefault(
            (group["part"], group["choice"]),
            {
                "part": group["part"],
                "choice": group["choice"],
                "groups": 0,
                "bytes": 0,
                "loss": 0.0,
            },
        )
        row["groups"] += 1
        row["bytes"] += group["bytes"]
        row["loss"] += group["loss"]
    return list(rows.values())


def header(result: Result) -> list[str]:
    """Return the comments at the head of a recipe."""
    return [
        f"Written by vlpress {result['vlpress']}: {result['command']}",
        f"Model: {result['model']}",
        _budget_line(result["budget"]),
        *_prediction(result),
        *_check_lines(result["check"]),
    ]


def summarize_search(result: Result) -> str:
    """Show what was chosen and predicted."""
    table = tabulate(
        [
            [row["part"], row["choice"], row["groups"], format_bytes(row["bytes"]), row["loss"]]
            for row in counts(result)
        ],
        headers=["part", "choice", "groups", "size", "predicted loss"],
        floatfmt=".3g",
    )
    return "\n".join(
        [
            table,
            "",
            _budget_line(result["budget"]),
            *_prediction(result),
            *_check_lines(result["check"]),
            f"next: vlpress quantize {result['model']} --recipe {result['out']} -o DIR",
        ]
    )


def _budget_line(budget: Mapping[str, Any]) -> str:
    limits = []
    if budget["bytes"] is not None:
        limits.append(f"{budget['bytes']} bytes ({format_bytes(budget['bytes'])})")
    if budget["bits"] is not None:
        limits.append(f"{budget['bits']:g} bits per decoder weight")
    if budget["milliseconds"] is not None:
        limits.append(f"{budget['milliseconds']:g} ms per generated token in linear layers")
    if budget["keep"] is not None:
        limits.append(f"{budget['keep']:g} of the decoder's weights not zero")
    return f"Budget: {', '.join(limits)}"


def _prediction(result: Result) -> list[str]:
    parts = ", ".join(f"{name} {size}" for name, size in result["parts"].items() if size)
    lines = [
        f"Predicted loss: {result['loss']:.4g} nats per answer token (KL from the original)",
        f"Tensors: {result['bytes']} bytes ({format_bytes(result['bytes'])}) of "
        f"{format_bytes(result['base_bytes'])}: {parts}",
        f"Decoder: {result['bits']:.3f} bits per weight, scales included",
    ]
    if result["budget"]["keep"] is not None:
        lines.append(f"Decoder: {result['kept']:.1%} of the weights are kept, the others are zero")
    if result["milliseconds"] is not None:
        lines.append(
            f"Linear layers of decoder and head: {result['milliseconds']:.3f} ms per generated "
            "token, timed one by one on this machine"
        )
    return lines


def _check_lines(check: Mapping[str, Any] | None) -> list[str]:
    if check is None:
        return ["Predictions were not checked (--check 0)"]
    count = len(check["pairs"])
    if check["spearman"] is None:
        return [f"Check: {count} choices, too few for a rank correlation"]
    return [
        f"Check: rank correlation {check['spearman']:.2f} of predicted loss and measured KL for "
        f"{count} choices applied alone ({check['samples']} samples), median measured / predicted "
        f"{check['ratio']:.2f}"
    ]
