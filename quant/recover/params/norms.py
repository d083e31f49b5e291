"""Weights of the decoder's norms (Norm Tweaking, Li et al., arXiv 2309.02784)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ....model.qwen_vl import QwenVL
from ....model.text import RMSNorm
from ..linears import DECODER, TrainedLinear
from ..straight_through import round_straight
from .kind import TrainedParams


class NormParams(TrainedParams):
    """A change of every norm's weight, relative to the mean magnitude of that norm's factors."""

    name = "norms"

    def attach(
        self, model: QwenVL, layers: Mapping[str, TrainedLinear], stored: torch.dtype
    ) -> dict[str, nn.Parameter]:
        """See `TrainedParams.attach`."""
        self._norms = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, RMSNorm) and name.startswith(DECODER)
        }
        changes = {}
        for name, norm in self._norms.items():
            changed = _Changed(norm, stored)
            parametrize.register_parametrization(norm, "weight", changed)
            changes[f"{name}.weight"] = changed.change
        return changes

    def detach(self) -> dict[str, Tensor]:
        """See `TrainedParams.detach`."""
        after: dict[str, Tensor] = {}
        for name, norm in self._norms.items():
            parametrize.remove_parametrizations(norm, "weight", leave_parametrized=True)
            norm.weight = nn.Parameter(norm.weight.detach(), requires_grad=False)
            if bool(self.changes[f"{name}.weight"].any()):
                after[f"{name}.weight"] = norm.weight.detach()
        return after


class _Changed(nn.Module):
    """A weight plus its change, rounded to the dtype that stores it."""

    def __init__(self, norm: RMSNorm, stored: torch.dtype) -> None:
        super().__init__()
        self.change = nn.Parameter(torch.zeros_like(norm.weight, dtype=torch.float32))
        factors = norm.weight.detach().float() + norm.offset
        self._unit, self._stored = float(factors.abs().mean()), stored

    def forward(self, weight: Tensor) -> Tensor:
        changed = weight.detach().float() + self._unit * self.change
        rounded = changed.detach().to(self._stored).float()
        return round_straight(changed, rounded).to(weight.dtype)
