"""Differences between two fingerprints, by key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def refuse_difference(
    where: Path | str, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    """Refuse to continue or compare under another fingerprint.

    Raises:
        ValueError: they differ; the message names each differing key.
    """
    if changed := differences(found, wanted):
        shown = "; ".join(changed[:6]) + ("; ..." if len(changed) > 6 else "")
        raise ValueError(
            f"{where} was made with another setup ({shown}); use the same settings, "
            "another folder, or overwrite it"
        )


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Name the keys in which two fingerprints differ: `batch_size: 8 -> 4`."""
    left, right = dict(_flat(found)), dict(_flat(wanted))
    keys = [*left, *(key for key in right if key not in left)]
    return [
        f"{key}: {_shown(left, key)} -> {_shown(right, key)}"
        for key in keys
        if (key in left) != (key in right) or left.get(key) != right.get(key)
    ]


def _shown(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "absent"
    text = str(values[key])
    return text if len(text) <= 24 else text[:21] + "..."  # digests: their start tells them apart


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in plain(values).items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they come back from JSON (tuples are lists, keys are strings)."""
    return dict(json.loads(json.dumps(values)))
