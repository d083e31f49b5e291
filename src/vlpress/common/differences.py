"""Differences between two fingerprints, by key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def refuse_difference(
    path: Path | str, stored: Mapping[str, Any], current: Mapping[str, Any]
) -> None:
    """Refuse to resume or compare work with another fingerprint.

    Args:
        path: file or folder, named in the message.
        stored: its fingerprint.
        current: fingerprint of the present call.

    Raises:
        ValueError: they differ; the message names each differing key.
    """
    if changed := differences(stored, current):
        shown = "; ".join(changed[:6]) + ("; ..." if len(changed) > 6 else "")
        raise ValueError(
            f"{path} was made with another setup ({shown}); use the same settings, "
            "another folder, or overwrite it"
        )


def differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """List the keys in which two fingerprints differ: `batch_size: 8 -> 4`."""
    left, right = dict(_flat(stored)), dict(_flat(current))
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
    return text if len(text) <= 24 else text[:21] + "..."  # the start of a digest identifies it


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in plain(values).items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values after a round trip through JSON: tuples are lists, keys are strings."""
    return dict(json.loads(json.dumps(values)))
