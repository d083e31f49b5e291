"""Calibration tokens of experts, in the record of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .report import LayerReport

EXPERT_TOKENS = 64
"""Fewest calibration tokens of an expert that is solved; with fewer it is rounded. A Hessian of so
few tokens has almost no energy in most directions, and a solver would fit its noise."""


def expert_tokens(layers: Sequence[LayerReport]) -> dict[str, Any] | None:
    """Collect the numbers of calibration tokens that reached the experts, as plain data.

    Args:
        layers: the finished layers.

    Returns:
        `floor` is `EXPERT_TOKENS`, and `tokens` has a list for each layer of experts by its module
        path, with one number per expert. None: no expert was calibrated.
    """
    tokens: dict[str, dict[int, int]] = {}
    for layer in layers:
        weight = layer.row.spec.slice
        if weight is not None and "tokens" in layer.values:
            of_block = tokens.setdefault(weight.tensor.rpartition(".")[0], {})
            of_block[weight.index] = layer.tokens
    if not tokens:
        return None
    ordered = {block: [counts[e] for e in sorted(counts)] for block, counts in tokens.items()}
    return {"floor": EXPERT_TOKENS, "tokens": ordered}
