"""The accepted drafts of multi-token prediction in a comparison."""

from __future__ import annotations

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
