"""The quantized KV caches of a comparison: what was simulated, and the ranges they had to hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....quant.runtime.description import described_type
from ...results import StoredRun

SIDES = ("base", "candidate")
GRIDS = {
    "int8": "int8 with one scale per token and head, as vLLM's int8_per_token_head",
    "int4": "int4 with one scale and zero point per token and head after a Hadamard rotation, as "
    "vLLM's int4_per_token_head",
    "fp8": "FP8 (E4M3) with one scale per layer for keys and one for values",
}
"""Type of a quantized cache -> its grid in words."""


def kv_cache_section(base: StoredRun, candidate: StoredRun) -> dict[str, Any]:
    """Return `{"kv_cache": ...}` of `report.json`; empty if both caches are of the model's dtype.

    Returns:
        For `base` and `candidate` None, or the description of the cache in the fingerprint together
        with the ranges of `measure_kv_ranges`.
    """
    sides = {}
    for side, run in zip(SIDES, (base, candidate), strict=True):
        described = run.fingerprint.get("kv_cache")
        quantized = described_type(described) != "model"
        cache = described if isinstance(described, Mapping) else {"type": described}
        sides[side] = {**cache, **run.info.get("kv_cache", {})} if quantized else None
    return {"kv_cache": sides} if any(sides.values()) else {}


def kv_cache_caveats(report: Mapping[str, Any]) -> list[str]:
    """Sentences on the simulated caches, and the warnings about their ranges.

    Args:
        report: content of `report.json`.
    """
    sides: Mapping[str, Any] = report.get("kv_cache", {})
    texts = []
    for side, cache in sides.items():
        if cache is None:
            continue
        grid = GRIDS[cache["type"]]
        if cache["type"] == "fp8":
            grid += f" (scales: {cache['scales']}), as vLLM's fp8"
        texts.append(
            f"The {side}'s KV cache was simulated: {grid}. Keys after the rotary embedding and "
            "values were quantized and dequantized in prefill and decoding, and every token "
            "attended to the quantized ones, its own included; answers and divergences were "
            "measured through this cache. Its speed and memory are not those of an engine."
        )
        texts += [f"KV cache of the {side}: {text}." for text in cache.get("warnings", ())]
    return texts
