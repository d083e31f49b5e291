"""Ranges of the keys and values that a quantized KV cache has to hold, on benchmark prompts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...model.cache import KVCache
from ...model.features import Features
from ...model.kv_quant.ranges import (
    OUTLIER_RATIO,
    LayerRange,
    clipping_warning,
    layer_range,
    outlier_warning,
)
from ...model.processing.inputs import Prompt
from ...model.qwen_vl import QwenVL
from ..answering.vision_features import FeatureCache
from ..tasks.task import Task
from .spread import spread

PROMPTS = 16
"""Prompts of all benchmarks together that the ranges are taken from, evenly spread."""

logger = logging.getLogger(__name__)


def measure_kv_ranges(features: FeatureCache, tasks: Sequence[Task]) -> dict[str, Any]:
    """Measure the keys and values of every layer, and warn of what the model's cache loses.

    Args:
        features: the model with its processor and image features.
        tasks: the benchmarks; always the same prompts of them.

    Returns:
        `prompts`, `outlier_ratio` (the threshold), `warnings`, and `layers` with the figures of
        `LayerRange`, as JSON values.
    """
    model = features.model
    items = spread([item for task in tasks for item in task.items], PROMPTS)
    ranges = kv_ranges(model, *features.prompts(items)) if items else []
    warnings = [outlier_warning(ranges)]
    if model.cache_type == "fp8":
        warnings.append(clipping_warning(ranges, model.cache_scales))
    texts = [text for text in warnings if text]
    for text in texts:
        logger.warning("%s", text)
    return {
        "prompts": len(items),
        "outlier_ratio": OUTLIER_RATIO,
        "warnings": texts,
        "layers": [of_layer.to_dict() for of_layer in ranges],
    }


@torch.inference_mode()
def kv_ranges(
    model: QwenVL, prompts: Sequence[Prompt], features: Sequence[Sequence[Features]]
) -> list[LayerRange]:
    """Measure rotated keys and values of every cached layer, in the model's dtype.

    Args:
        model: in eval mode; its own type of cache is not used.
        prompts: at least one.
        features: result of `QwenVL.encode` for the visuals of each prompt.
    """
    largest: dict[tuple[int, int], Tensor] = {}
    for prompt, of_prompt in zip(prompts, features, strict=True):
        batch = model.embed([prompt], [of_prompt])  # alone, so that nothing is padding
        cache = KVCache(model.config.text, 1, len(prompt))
        model.model(batch.embeds, batch.position_ids, None, cache, batch.added)
        for layer in model.config.text.cached_layers:
            stored = cache.buffers(layer, 0, batch.embeds)
            for kind, buffer in enumerate((stored.keys, stored.values)):
                channels = buffer[0].float().abs().amax(1)
                before = largest.get((layer, kind), channels)
                largest[layer, kind] = torch.maximum(before, channels)
    return [
        layer_range(layer, largest[layer, 0], largest[layer, 1])
        for layer in model.config.text.cached_layers
    ]
