"""A linear layer whose integers are trained around a solver's solution.

As SignRound (Cheng et al., arXiv 2309.05516, section 3), where a weight is `s round(w / s + V)`
with a trained V and a trained factor on the scale. Here it is `s round(q + V)` with the integer q
of a solver in place of `w / s`: V = 0 gives the solver's weight. Zero points stay.

With a `freeze` schedule (INQ, Zhou et al., arXiv 1702.03044) only the weights that are frozen are
rounded, the largest of each row first; the others are float numbers that adapt.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...methods.affine import QuantizedWeight, round_scales
from ...runtime.adapter import LowRankAdapter, added
from ..straight_through import round_inputs, round_straight

REACH = 1.0
"""Largest change of a weight, in steps of its grid."""
FACTORS = (0.5, 1.5)
"""Range of the trained factor on a scale."""


class RoundedLinear(nn.Module):
    """A linear layer with trained rounding and scales.

    Args:
        solved: the solver's weight, with contiguous groups.
        original: the float weight `[N, K]`, whose magnitudes order the schedule.
        bias: `[out_features]` or None.
        adapter: low-rank part that is added, or None.
    """

    start: Tensor
    zero_points: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(
        self,
        solved: QuantizedWeight,
        original: Tensor,
        bias: Tensor | None,
        adapter: LowRankAdapter | None = None,
    ) -> None:
        super().__init__()
        self.solved, self.adapter = solved, adapter
        shape = (*solved.scales.shape, -1)
        integers = solved.integers.float().reshape(shape)
        zeros = solved.zero_points.float()[..., None]
        self.register_buffer("start", integers, persistent=False)
        self.register_buffer("zero_points", zeros, persistent=False)
        self.register_buffer("scales", solved.scales, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("frozen", torch.ones_like(self.start, dtype=torch.bool), False)
        self._weight: Tensor | None = None
        self._magnitudes = original.float().abs()
        self.rounding = nn.Parameter(torch.zeros_like(self.start))
        self.factors = nn.Parameter(torch.ones_like(solved.scales))

    def freeze(self, share: float) -> None:
        """Fix the largest weights of each row to their levels; the others become float numbers.

        Args:
            share: of the weights of a row, above 0 and at most 1.
        """
        rows, columns = self._magnitudes.shape
        count = max(1, round(share * columns))
        largest = self._magnitudes.topk(count, dim=1).indices
        mask = torch.zeros(rows, columns, dtype=torch.bool, device=largest.device)
        self.frozen = mask.scatter_(1, largest, True).reshape(self.start.shape)

    @torch.no_grad()
    def limit(self) -> None:
        """Bring the parameters back into their ranges."""
        self.rounding.clamp_(-REACH, REACH)
        self.factors.clamp_(*FACTORS)

    def stored_scales(self) -> Tensor:
        """Return the scales as they are stored, with the gradient of those before rounding."""
        scales = self.scales * self.factors
        return round_straight(scales, round_scales(scales.detach()))

    def levels(self) -> Tensor:
        """Return levels `[N, G, width]`: whole numbers where weights are frozen."""
        top = self.solved.scheme.max_level
        moved = (self.start + self.rounding).clamp(0, top)
        whole = moved.detach().round()
        rounded = whole if bool(self.frozen.all()) else torch.where(self.frozen, whole, moved)
        return round_straight(moved, rounded.detach())

    def quantized(self) -> QuantizedWeight:
        """Return the weight with all levels rounded."""
        top = self.solved.scheme.max_level
        with torch.no_grad():
            levels = (self.start + self.rounding).clamp(0, top).round()
            scales = self.stored_scales().detach()
        integers = levels.to(torch.uint8).reshape(self.solved.integers.shape)
        return replace(self.solved, integers=integers, scales=scales)

    def compute_weight(self) -> None:
        """Compute the weight `[N, K]` that `forward` multiplies with, with its gradient.

        Once for all samples of a step: it takes more time than a sample's product.
        """
        scaled = (self.levels() - self.zero_points) * self.stored_scales()[..., None]
        self._weight = scaled.reshape(self.solved.integers.shape)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`, in the dtype of `x`."""
        dtype = x.dtype
        # 16 bits would round the gradients of single weights, and are slow on most processors.
        rounded = round_inputs(x, self.solved).float()
        assert self._weight is not None
        bias = None if self.bias is None else self.bias.float()
        return added(self.adapter, x, F.linear(rounded, self._weight, bias).to(dtype))
