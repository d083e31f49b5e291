"""Scales of quantized layers; the integers stay (EfficientQAT's E2E-QP, arXiv 2407.11062, 3.3)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ....model.qwen_vl import QwenVL
from ..linears import TrainedLinear
from .kind import TrainedParams


class ScaleParams(TrainedParams):
    """A relative change of every scale of the quantized linear layers of decoder and head."""

    name = "scales"

    def attach(
        self, model: QwenVL, layers: Mapping[str, TrainedLinear], stored: torch.dtype
    ) -> dict[str, nn.Parameter]:
        """See `TrainedParams.attach`."""
        if not layers:
            raise ValueError(
                "recover: no linear layer of the decoder is quantized; params scales trains the "
                "scales of such layers; quantize some, or train norms"
            )
        changes = {}
        for name, layer in layers.items():
            try:
                changes[name] = layer.train_scales()
            except ValueError as error:
                raise ValueError(f"recover: {name}: {error}") from None
        return changes
