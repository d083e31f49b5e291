"""Refit the remaining channels of a linear layer to the outputs of all of them.

Letters: N output features, K input channels, S those that stay, R those that are removed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..hessian.prepared_hessian import prepare_hessian


def refit(weight: Tensor, hessian: Tensor, kept: Tensor, *, damp_percent: float) -> Tensor:
    """Compute the columns S of a weight that reproduce the outputs of all columns best.

    The minimum of `tr(E H E') + d |V - W_S|^2`, with the error E of the outputs under H and the
    damping d, is in closed form

        V = W_S + W_R H_RS (H_SS + d I)^-1,

    which for d = 0 is the least-squares solution `W H_KS H_SS^-1`. Damping draws it towards the
    original weights instead of zero: columns without removed neighbours, and inputs that
    calibration never excites, keep their weights.

    Args:
        weight: `[N, K]`, any float dtype.
        hessian: `[K, K]` of the inputs, see `Hessian`.
        kept: int64 `[S]`, ascending.
        damp_percent: d as a fraction of the mean diagonal of H_SS; more is tried where no factor
            exists.

    Returns:
        float32 `[N, S]`.

    Raises:
        ValueError: the Hessian is not finite or has no factor.
    """
    original = weight.float()
    removed = removed_channels(kept, weight.shape[1])
    if not len(removed):
        return original[:, kept]
    prepared = prepare_hessian(hessian[kept][:, kept], damp_percent=damp_percent, act_order=False)
    lost = original[:, removed] @ hessian[removed][:, kept].float()
    return original[:, kept] + prepared.solve(lost)


def removed_channels(kept: Tensor, width: int) -> Tensor:
    """Return the channels that do not stay in ascending order, int64."""
    stays = torch.zeros(width, dtype=torch.bool, device=kept.device)
    stays[kept] = True
    return (~stays).nonzero()[:, 0]


def scattered(columns: Tensor, kept: Tensor, width: int) -> Tensor:
    """Return a weight `[N, K]` with these columns `[N, S]` and zeros elsewhere."""
    whole = columns.new_zeros(len(columns), width)
    whole[:, kept] = columns
    return whole
