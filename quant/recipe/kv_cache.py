"""The `[kv_cache]` table of a recipe: calibrated scales of an FP8 KV cache."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from ...common.validation import OneOf, validated

ONLY = "an FP8 cache with one scale per layer for keys and one for values is the only kind that "
ONLY += "checkpoints hold scales of"


@validated
class KVCacheScheme:
    """Quantization of the KV cache whose scales are calibrated and written to the checkpoint."""

    bits: Annotated[int, OneOf((8,), ONLY)] = 8
    type: Annotated[str, OneOf(("fp8",), ONLY)] = "fp8"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data with every default."""
        return asdict(self)
