"""The position-aware resampler of Qwen-VL of 2023 (arXiv 2308.12966, section 2.1).

One cross-attention: learned queries, each at a place of a square grid, attend to the patches of an
image; places are added to queries and keys, not to values. So an image has one feature per query,
whatever its number of patches.

Letters in shapes: N patches of all images together, P patches of one, Q queries, C width of the
tower, H hidden size of the decoder.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import VisionConfig
from ..qwen_v1_fields import RESAMPLER_HEAD
from ..vision import EPS
from .positions import interpolate_positions


class CrossAttention(nn.Module):
    """Multi-head attention whose three input projections are one stored matrix.

    Its thirds read three different inputs, so it is no linear layer and is never quantized.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // RESAMPLER_HEAD
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend, to `[images, Q, H]`.

        Args:
            query: `[images, Q, H]`.
            key: `[images, P, H]`.
            value: `[images, P, H]`.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).view(*x.shape[:2], self.heads, -1).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class Resampler(nn.Module):
    """Cross-attention of the queries to the patches, a norm and a projection.

    `pos_embed` has the queries' places; those of patches are interpolated from them.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, side = config.out_hidden_size, config.grid_side // config.spatial_merge_size
        self.side = config.grid_side
        self.query = nn.Parameter(torch.empty(side**2, width))
        self.pos_embed = nn.Parameter(torch.empty(side**2, width))
        self.kv_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.attn = CrossAttention(width)
        self.ln_q = nn.LayerNorm(width, eps=EPS)
        self.ln_kv = nn.LayerNorm(width, eps=EPS)
        self.ln_post = nn.LayerNorm(width, eps=EPS)
        self.proj = nn.Parameter(torch.empty(width, width))

    def forward(self, hidden: Tensor, order: Tensor) -> Tensor:
        """Compute the features of all images, `[N, C]` to `[images * Q, H]`.

        Args:
            hidden: of the patches.
            order: int64 `[N]`, the index of each patch in its image, row by row.
        """
        images = hidden.shape[0] // self.side**2
        values: Tensor = self.ln_kv(self.kv_proj(hidden)).view(images, self.side**2, -1)
        places = interpolate_positions(self.pos_embed, self.side)[order].view_as(values)
        queries = self.ln_q(self.query) + self.pos_embed
        mixed = self.attn(queries.expand(images, -1, -1), values + places, values)
        out: Tensor = self.ln_post(mixed) @ self.proj
        return out.flatten(0, 1)
