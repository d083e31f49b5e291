"""Low-rank adapters of quantized layers; the weights stay (QLoRA, arXiv 2305.14314).

They start from the adapters that quantization has fitted to its error, as LoftQ's do (arXiv
2310.08659), in the metric of the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ....model.qwen_vl import QwenVL
from ...methods.low_rank import NAMES, LowRank
from ..linears import TrainedLinear
from ..straight_through import round_straight
from .kind import TrainedParams


class AdapterParams(TrainedParams):
    """Changes of A and B, relative to the mean magnitude of each matrix."""

    name = "adapter"

    def attach(
        self, model: QwenVL, layers: Mapping[str, TrainedLinear], stored: torch.dtype
    ) -> dict[str, nn.Parameter]:
        """See `TrainedParams.attach`."""
        changes: dict[str, nn.Parameter] = {}
        for name, layer in layers.items():
            if layer.adapter is None:
                continue
            trained = TrainedAdapter(layer.adapter.low_rank(), stored)
            layer.trained_adapter = trained
            for end, change in zip(NAMES, trained.changes, strict=True):
                changes[f"{name}.{end}"] = change
        if not changes:
            raise ValueError(
                "recover: no layer of the decoder has an adapter; params adapter trains those of a "
                "checkpoint; quantize with adapter_rank = 32 in its steps"
            )
        return changes


class TrainedAdapter(nn.Module):
    """The product `(x A') B'` with trained matrices, as they are stored.

    Args:
        part: A and B at the start.
        stored: dtype of the checkpoint's float tensors, which stores them if it holds the start.
    """

    def __init__(self, part: LowRank, stored: torch.dtype) -> None:
        super().__init__()
        self._start = (part.down, part.up)
        exact = all(torch.equal(m.to(stored).to(m.dtype), m) for m in self._start)
        self._dtype = stored if exact else part.down.dtype
        # A matrix of zeros, as B of a new LoRA adapter, has no size of its own.
        sizes = [float(matrix.float().abs().mean()) for matrix in self._start]
        self._units = [size or max(sizes) for size in sizes]
        self.changes = nn.ParameterList(
            torch.zeros_like(matrix, dtype=torch.float32) for matrix in self._start
        )

    def matrices(self) -> list[Tensor]:
        """Return A and B as they are stored, in float32, with the gradient before rounding."""
        values = []
        for start, unit, change in zip(self._start, self._units, self.changes, strict=True):
            changed = start.float() + unit * change
            values.append(round_straight(changed, changed.detach().to(self._dtype).float()))
        return values

    def low_rank(self) -> LowRank:
        """Return the trained matrices in the dtype that stores them."""
        down, up = (matrix.detach().to(self._dtype) for matrix in self.matrices())
        return LowRank(down, up)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`, in the dtype of `x`."""
        down, up = (matrix.to(x.dtype) for matrix in self.matrices())
        return x @ down.t() @ up.t()
