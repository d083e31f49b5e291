"""Choose the inner channels of an MLP that stay.

Letters: N output features and K inner channels of the MLP's last linear layer, `down`.

Scores, the largest of which stay:

- wanda, `|W[:, j]|^2 H_jj`: the mean squared output of channel j on the calibration samples, the
  score of `masks.py` added up over a column. Groups of weights that are removed together are those
  of Wen et al., "Learning Structured Sparsity in Deep Neural Networks" (arXiv 1608.03665, section
  3), without its training;
- magnitude, `|W[:, j]|^2`;
- random, which "Rethinking the Value of Network Pruning" (Liu et al., arXiv 1810.05270) asks every
  choice to be compared with.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ...recipe.ranges import ChannelScore


def channel_scores(
    weight: Tensor, score: ChannelScore, *, energies: Tensor | None = None, seed: str = ""
) -> Tensor:
    """Compute the score of every inner channel.

    Args:
        weight: `[N, K]` of `down`, any float dtype.
        score: the rule.
        energies: float `[K]`, the diagonal of the Hessian of its inputs; needed for "wanda".
        seed: of "random"; different for every block.

    Returns:
        float32 `[K]`, not negative.

    Raises:
        ValueError: there are no energies for a score that needs them.
    """
    if score == "random":
        generator = torch.Generator().manual_seed(_number(seed))
        return torch.rand(weight.shape[1], generator=generator).to(weight.device)
    squares = weight.float().square().sum(dim=0)
    if score == "magnitude":
        return squares
    if energies is None:
        raise ValueError(
            "score wanda needs calibration samples that reach the layer; allowed without: "
            "magnitude, random"
        )
    return squares * energies.float().clamp_min(0)


def choose_channels(scores: Tensor, count: int) -> Tensor:
    """Return the channels with the largest scores in ascending order, int64 `[count]`.

    Of equal scores the first ones stay, so that the choice is deterministic.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    return order[:count].sort().values


def _number(seed: str) -> int:
    """Convert a text to a seed of 63 bits."""
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") >> 1
