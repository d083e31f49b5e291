"""Choose the decoder layers that stay, by block influence.

The influence of layer l is `1 - E_t cos(x_l,t, x_l+1,t)` over the tokens t of the calibration
samples: a layer that hardly turns the hidden states is dropped first. "ShortGPT: Layers in Large
Language Models are More Redundant Than You Expect" (Men et al., arXiv 2403.03853, section 2.2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def cosine_sum(before: Tensor, after: Tensor, weights: Tensor | None = None) -> tuple[float, float]:
    """Add up the cosines between the inputs and outputs of a layer.

    Args:
        before: `[..., T, H]`, hidden states, any float dtype.
        after: the same shape.
        weights: float `[T]` of the tokens; None = all are 1.

    Returns:
        The weighted sum of the cosines in float64, and the sum of the weights.
    """
    width = before.shape[-1]
    pairs = before.reshape(-1, width).double(), after.reshape(-1, width).double()
    cosines = torch.nn.functional.cosine_similarity(*pairs, dim=-1)
    if weights is None:
        return float(cosines.sum()), float(len(cosines))
    weights = weights.to(cosines)
    return float(cosines @ weights), float(weights.sum())


def drop_layers(
    scores: Sequence[float], count: int, *, stays: int = 0, period: int = 1
) -> list[int]:
    """Choose the layers to drop, those with the least scores.

    Args:
        scores: of each layer.
        count: how many are dropped, a multiple of `period`.
        stays: number of first layers that stay.
        period: layers are dropped in runs of this length that begin at its multiples, so that a
            pattern of this period remains one; the score of a run is the sum of its layers'.

    Returns:
        Their indexes in ascending order; of equal scores the later layer is dropped.

    Raises:
        ValueError: fewer than `count` may be dropped.
    """
    runs = [range(first, first + period) for first in range(0, len(scores), period)]
    allowed = [run for run in runs if run[0] >= stays]
    if count > period * len(allowed):
        raise ValueError(
            f"{count} of {len(scores)} layers cannot be dropped; allowed: at most "
            f"{period * len(allowed)}"
        )
    ranked = sorted(allowed, key=lambda run: (sum(scores[i] for i in run), -run[0]))
    return sorted(index for run in ranked[: count // period] for index in run)


def random_scores(count: int, seed: int) -> list[float]:
    """Return scores in random order, for the control of every choice."""
    number = int.from_bytes(hashlib.sha256(f"{seed} layers".encode()).digest()[:8], "big") >> 1
    generator = torch.Generator().manual_seed(number)
    scores: list[float] = torch.rand(count, generator=generator).tolist()
    return scores
