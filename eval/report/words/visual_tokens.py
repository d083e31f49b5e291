"""The visual tokens that a comparison's models computed with, if a rule dropped some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....model.token_reduction.table import SCOPE, read_rule
from ...answering.predictions import count_visual_tokens
from ...fingerprint import VISUAL_TOKENS
from ...results import StoredRun
from .kv_cache import SIDES


def visual_tokens_section(base: StoredRun, candidate: StoredRun) -> dict[str, Any]:
    """Return `{"visual_tokens": ...}` of `report.json`; empty if both models kept all tokens.

    Returns:
        For `base` and `candidate` None, or the rule and `benchmarks` with `count_visual_tokens` of
        each.
    """
    sides = {}
    for side, run in zip(SIDES, (base, candidate), strict=True):
        rule = run.fingerprint.get(VISUAL_TOKENS)
        counts = {
            name: count_visual_tokens(task.first[item["id"]] for item in task.sound_items)
            for name, task in run.tasks.items()
        }
        sides[side] = None if rule is None else {"rule": dict(rule), "benchmarks": counts}
    return {"visual_tokens": sides} if any(sides.values()) else {}


def visual_token_caveats(report: Mapping[str, Any]) -> list[str]:
    """Sentences on dropped visual tokens, with the share kept on each benchmark.

    Args:
        report: content of `report.json`.
    """
    sides: Mapping[str, Any] = report.get("visual_tokens", {})
    texts = []
    for side, reduced in sides.items():
        if reduced is None:
            continue
        rule = read_rule(reduced["rule"], "report", "visual_tokens").text
        shares = "; ".join(
            f"{name} {100 * counts['retention']:.1f} % ({counts['kept']:,} of {counts['total']:,})"
            for name, counts in reduced["benchmarks"].items()
            if counts["retention"] is not None
        )
        texts.append(
            f"The {side} computed with a part of the visual tokens: {rule}, {SCOPE}. Kept: "
            f"{shares or 'no prompt has visual tokens'}."
        )
    return texts
