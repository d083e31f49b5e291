"""SmoothQuant: migrate activation outliers into the weights, which are easier to quantize.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", arXiv 2211.10438, section 4. A channel's scale s divides its activations and multiplies the
weight columns that read it (`channel_scaling.py`). The paper smooths the inputs of attention and
MLP that follow a norm; here the pairs v -> o and up -> down are smoothed too.

Differences from the paper: channels that are zero in all calibration samples keep scale 1, and
scales are bounded by 2**16 and 2**-16, so that no product overflows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...common.validation import check_value
from ..recipe.ranges import Share

ALPHAS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Candidates of an `alpha` search, in addition to no smoothing."""
LARGEST_SCALE = 2.0**16
"""Bound of scales and of their inverses."""
_NEGLIGIBLE = 1e-5  # column magnitudes below this fraction of the largest count as this fraction


def weight_absmax(weights: Sequence[Tensor]) -> Tensor:
    """Compute the largest magnitude of each input column over all layers that read the input.

    Args:
        weights: `[N, K]` each, with the same K.

    Returns:
        float32 `[K]`.
    """
    return torch.stack([weight.float().abs().amax(dim=0) for weight in weights]).amax(dim=0)


def smooth_scales(act_scales: Tensor, weight_scales: Tensor, alpha: float) -> Tensor:
    """Compute `s = max|X|**alpha / max|W|**(1 - alpha)` per channel (equation 4).

    Args:
        act_scales: float32 `[channels]`, largest magnitude of each channel's activations.
        weight_scales: float32 `[channels]`, of the columns that read the channel.
        alpha: migration strength, 0 (equalizes the weights) to 1 (equalizes the activations).

    Returns:
        float32 `[channels]`, positive and finite.

    Raises:
        ValueError: alpha is out of range, or a magnitude is not finite.
    """
    check_value(Share, alpha, "alpha")
    for what, values in (("activations", act_scales), ("weights", weight_scales)):
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{what} are not finite; calibrate in bf16 or fp32")
    largest = weight_scales.max()
    weight = weight_scales.float().clamp_min(float(largest) * _NEGLIGIBLE)
    # In logarithms: a power may overflow where the quotient does not.
    scales = torch.exp(alpha * act_scales.float().log() - (1 - alpha) * weight.log())
    unused = (act_scales == 0) | (largest == 0)
    return scales.clamp(1 / LARGEST_SCALE, LARGEST_SCALE).masked_fill(unused, 1.0)
