"""The tokens that a divergence is over: all, the likeliest, or those that two models share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...fidelity.divergences import COMMON, FULL, LUMPED

OVER: Mapping[str, str] = {
    FULL: "over the full vocabulary",
    LUMPED: "over the base's 1024 most probable tokens and the sum of all others",
    COMMON[FULL]: "over the tokens that both vocabularies have, both normalized again",
    COMMON[LUMPED]: "over those of the base's 1024 most probable tokens that both vocabularies "
    "have, both normalized again",
}
"""By the `kl_kind` of a report."""


def vocabulary_caveats(report: Mapping[str, Any]) -> list[str]:
    """A sentence on the divergence of a pruned vocabulary; none if it was not measured.

    Args:
        report: content of `report.json`.
    """
    fidelity = report["fidelity"]
    if fidelity is None or fidelity.get("kl_kind") not in COMMON.values():
        return []
    left = fidelity["vocabulary"]
    return [
        f"The candidate's vocabulary is pruned, so the divergence is {OVER[fidelity['kl_kind']]}. "
        f"The base gives other tokens a probability of {left['removed_mass']:.2g} on average, and "
        f"{left['answers_left_out']} of {left['answers']} answers are left out because they have "
        "removed tokens."
    ]
