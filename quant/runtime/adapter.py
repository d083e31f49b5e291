"""The low-rank adapter of a linear layer at inference and in training."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..methods.low_rank import LowRank


class LowRankAdapter(nn.Module):
    """Adds `(x A') B'` to the output of a layer; x is its input before any rounding.

    `down` (A, `[r, in_features]`) and `up` (B, `[out_features, r]`) are buffers, as all tensors of
    compressed layers are. They are leaves: `requires_grad_()` makes them trainable.
    """

    down: Tensor
    up: Tensor

    def __init__(self, part: LowRank) -> None:
        """Register the matrices, without copies.

        Args:
            part: in the dtype in which it is stored.
        """
        super().__init__()
        self.register_buffer("down", part.down)
        self.register_buffer("up", part.up)

    @property
    def rank(self) -> int:
        """Rows of A."""
        return len(self.down)

    def low_rank(self) -> LowRank:
        """Return the matrices, without copies."""
        return LowRank(self.down.detach(), self.up.detach())

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`, in the dtype of `x`."""
        return F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))

    def extra_repr(self) -> str:
        """Return the rank for `print(model)`."""
        return f"rank={self.rank}, dtype={str(self.down.dtype).removeprefix('torch.')}"


def added(adapter: LowRankAdapter | None, x: Tensor, output: Tensor) -> Tensor:
    """Return the output of a layer with that of its adapter, if it has one.

    Args:
        adapter: of the layer.
        x: the layer's input.
        output: of the quantized weight, in the dtype of `x`.
    """
    return output if adapter is None else output + adapter(x)
