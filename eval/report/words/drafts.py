"""Accepted drafts in a comparison: of multi-token prediction, and of the candidate for the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...results import StoredRun
from .kv_cache import SIDES


def drafts_section(base: StoredRun, candidate: StoredRun) -> dict[str, Any]:
    """Return `{"drafts": ...}` of `report.json`; empty if neither run measured drafts.

    Returns:
        For `base` and `candidate` None, or the figures of `measure_drafts`.
    """
    sides = {
        side: run.info.get("drafts") for side, run in zip(SIDES, (base, candidate), strict=True)
    }
    return {"drafts": sides} if any(sides.values()) else {}


def as_draft_text(report: Mapping[str, Any]) -> str | None:
    """The candidate as a draft for the base, in one sentence; None if it was not measured.

    Args:
        report: content of `report.json`.
    """
    draft = (report.get("fidelity") or {}).get("as_draft")
    if draft is None:
        return None
    least = "at least " if draft["is_lower_bound"] else ""
    passes = draft["expected_tokens"]
    return (
        f"As a draft for the original: accepted {least}{100 * draft['sampled']:.1f} % of tokens "
        f"when sampling at temperature 1 and {100 * draft['greedy']:.1f} % with greedy decoding, "
        f"{least}{passes['sampled']:.2f} and {passes['greedy']:.2f} tokens per pass of the "
        f"original with {draft['draft_tokens']} drafts."
    )
