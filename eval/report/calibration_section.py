"""What a report says about the samples that its candidate was calibrated on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHOWN = 5
"""Warnings that a page shows; `report.json` holds all of them."""


def describe_samples(calibration: Mapping[str, Any]) -> str:
    """Their number and source in words.

    Args:
        calibration: `calibration` of `report.json`.
    """
    if not calibration["samples"]:
        return "none"
    drawn = calibration["source"] == "synthetic"
    source = "built-in drawings" if drawn else calibration["source"]
    return (
        f"{calibration['samples']} samples of {source}, {calibration['with_images']} of them with "
        "images"
    )


def shown_warnings(calibration: Mapping[str, Any] | None) -> list[str]:
    """What a reader must know about them, the rest counted in a last line.

    Args:
        calibration: `calibration` of `report.json`; None if its maker does not know it.
    """
    found = list((calibration or {}).get("warnings", ()))
    if len(found) <= SHOWN:
        return found
    return [*found[:SHOWN], f"{len(found) - SHOWN} more warnings are in report.json"]
