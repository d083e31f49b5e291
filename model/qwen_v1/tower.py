"""The vision tower of Qwen-VL of 2023 ("Qwen-VL", arXiv 2308.12966, section 2.1).

ViT-bigG: LayerNorm, exact GELU, full attention within an image, learned positions. Every image is
scaled to one square, so all have the same number of patches. The table of positions is that of a
smaller grid, interpolated to the image's. Rows of `attn.in_proj` are ordered by head: of each one
query, key, value.

Names of modules are the checkpoint's, but for the containers that `canonical_name` maps.

Letters in shapes: N patches of all images together, P patches of one, C width of the tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import VisionConfig
from ..features import HIDDEN, Features
from ..text import State
from ..tower import Tower
from ..vision import EPS, vision_layout
from .positions import interpolate_positions
from .resampler import Resampler


class PatchInput(nn.Module):
    """Embedding of patches and of their positions, normalized."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        patch, width = config.patch_size, config.hidden_size
        self.conv1 = nn.Conv2d(
            config.in_channels, width, kernel_size=patch, stride=patch, bias=False
        )
        self.positional_embedding = nn.Parameter(torch.empty(config.num_position_embeddings, width))
        self.ln_pre = nn.LayerNorm(width, eps=EPS)

    def forward(self, patches: Tensor, order: Tensor, side: int) -> Tensor:
        """Embed patches, `[N, channels * patch * patch]` to `[N, C]`.

        Args:
            patches: of all images.
            order: int64 `[N]`, the index of each patch in its image, row by row.
            side: patches per row of an image.
        """
        weight = self.conv1.weight
        # Stride and kernel are equal, so the convolution is a product.
        embedded = F.linear(patches.to(weight.dtype), weight.flatten(1))
        positions = interpolate_positions(self.positional_embedding, side)
        out: Tensor = self.ln_pre(embedded + positions[order.to(weight.device)])
        return out


class Attention(nn.Module):
    """Self-attention among the patches of each image."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.in_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, length: int) -> Tensor:
        """Attend, `[N, C]` to `[N, C]`; `length` is the number of patches of an image."""
        by_head = self.in_proj(x).view(-1, length, self.num_heads, 3, x.shape[1] // self.num_heads)
        q, k, v = by_head.permute(3, 0, 2, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).reshape_as(x))
        return out


class GELUMLP(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.hidden_size, config.intermediate_size)
        self.c_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP, `[N, C]` to `[N, C]`."""
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x)))
        return out


class Block(nn.Module):
    """One transformer block of the tower."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=EPS)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=EPS)
        self.mlp = GELUMLP(config)

    def forward(self, hidden: Tensor, length: int) -> Tensor:
        """Run the block, `[N, C]` to `[N, C]`; `length` is the number of patches of an image."""
        hidden = hidden + self.attn(self.ln_1(hidden), length)
        out: Tensor = hidden + self.mlp(self.ln_2(hidden))
        return out


class QwenV1Tower(Tower):
    """The tower of Qwen-VL of 2023; its features are those of the resampler's queries."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_input = PatchInput(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.merger = Resampler(config)

    def prepare(self, patches: Tensor, grid: Tensor) -> State:
        """Embed the patches with their positions.

        Returns:
            `hidden [N, C]`, and `order` int64 `[N]`, the index of each patch in its image.

        Raises:
            ValueError: an image has another size than the tower's.
        """
        side = self.config.grid_side
        for each in grid.tolist():
            if each != [1, side, side]:
                raise ValueError(
                    f"grid {tuple(each)}: this model reads images of {side} x {side} patches; "
                    "prepare them with the checkpoint's processor"
                )
        coordinates = vision_layout(grid, self.config)["coordinates"]
        order = coordinates[:, 0] * side + coordinates[:, 1]
        device = self.patch_input.conv1.weight.device
        hidden = self.patch_input(patches.to(device), order, side)
        return {"hidden": hidden, "order": order.to(device)}

    def step(self, index: int, state: State) -> State:
        """Run block `index`; returns the state with its `hidden`, `state` is not changed."""
        hidden = self.blocks[index](state["hidden"], self.config.grid_side**2)
        return {**state, "hidden": hidden}

    def merge(self, state: State) -> State:
        """Run the resampler, `hidden [queries of all images, out_hidden_size]`."""
        resampler = cast(Resampler, self.merger)
        return {**state, "hidden": resampler(state["hidden"], state["order"])}

    def finish(self, state: Mapping[str, Tensor]) -> Features:
        """Return the resampler's output alone."""
        return {HIDDEN: state["hidden"]}
