"""Scales of an FP8 KV cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class KVScales:
    """Scales of the keys and values of one layer; both positive."""

    key: float
    value: float


def digest_scales(scales: Sequence[KVScales]) -> str:
    """Return the beginning of the sha256 of all layers' scales."""
    pairs = [[of_layer.key, of_layer.value] for of_layer in scales]
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:12]
