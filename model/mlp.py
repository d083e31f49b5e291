"""The feed-forward layer of a decoder: SwiGLU (arXiv 2002.05202)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .fused_linear import project


class MLP(nn.Module):
    """SwiGLU feed-forward without biases.

    Letters in shapes: B batch, T tokens, H hidden size, I inner size.
    """

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP, `[..., H]` to `[..., H]`."""
        out: Tensor = self.down_proj(self.inner(x))
        return out

    def inner(self, x: Tensor) -> Tensor:
        """Compute the input of `down_proj`, `[..., I]`."""
        gate, up = project(x, self.gate_proj, self.up_proj)
        return F.silu(gate) * up
