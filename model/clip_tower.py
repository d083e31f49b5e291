"""The vision tower of LLaVA: a CLIP encoder and a projector of two linear layers.

CLIP ("Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020): a
learned class token before the patches of a square image, a learned table of positions, LayerNorm
and QuickGELU. LLaVA-1.5 ("Improved Baselines with Visual Instruction Tuning", arXiv 2310.03744,
section 3.2) reads the output of a layer before the last one without the class token. Each of its
patches becomes one decoder token. Attribute names within the tower equal the checkpoint's.

Letters in shapes: V images, P patches of an image, C width of the tower, D width of one head.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import VisionConfig
from .features import HIDDEN, Features
from .fused_linear import project
from .text import State
from .tower import Tower
from .vision import QuickGELUMLP


class PatchEmbeddings(nn.Module):
    """Class token and patches with their positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, side = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(config.in_channels, width, side, stride=side, bias=False)
        table = torch.empty(config.num_position_embeddings + 1, width)
        if not table.is_meta:  # there, torch would import its compiler to fill it: two seconds
            nn.init.normal_(table)
        self.position_embedding = nn.Embedding(len(table), width, _weight=table)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed flattened patches, `[V, P, channels * patch * patch]` to `[V, 1 + P, C]`."""
        weight = self.patch_embedding.weight
        # The last cast only acts under autocast: the residual stream keeps the weights' precision.
        embedded = F.linear(patches.to(weight.dtype), weight.flatten(1)).to(weight.dtype)
        first = self.class_embedding.expand(len(patches), 1, -1)
        return torch.cat((first, embedded), dim=1) + self.position_embedding.weight


class CLIPAttention(nn.Module):
    """Self-attention of all tokens of an image."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.head_dim = config.head_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend, `[V, 1 + P, C]` to `[V, 1 + P, C]`."""
        q, k, v = (
            projected.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
            for projected in project(x, self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class CLIPLayer(nn.Module):
    """One layer: normalize, attend, add; normalize, feed forward, add."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.self_attn = CLIPAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.mlp = QuickGELUMLP(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """Run the layer, `[V, 1 + P, C]` to `[V, 1 + P, C]`."""
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        out: Tensor = hidden + self.mlp(self.layer_norm2(hidden))
        return out


class Encoder(nn.Module):
    """The layers that run; a checkpoint may hold more."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CLIPLayer(config) for _ in range(config.depth))


class Projector(nn.Module):
    """Two linear layers with the exact GELU between them, to the decoder's width."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.hidden_size, config.out_hidden_size)
        self.linear_2 = nn.Linear(config.out_hidden_size, config.out_hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Project, `[..., C]` to `[..., out_hidden_size]`."""
        out: Tensor = self.linear_2(F.gelu(self.linear_1(hidden)))
        return out


class CLIPTower(Tower):
    """The tower of LLaVA; its features are one token for each patch."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = PatchEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, config.norm_eps)  # as in CLIP's files
        self.encoder = Encoder(config)
        self.multi_modal_projector = Projector(config)

    def forward(self, patches: Tensor, grid: Tensor) -> Features:
        """Encode images, see `Tower.forward`."""
        state = self.prepare(patches, grid)
        for index in range(len(self.encoder.layers)):
            state = self.step(index, state)
        return self.finish(self.merge(state))

    def prepare(self, patches: Tensor, grid: Tensor) -> State:
        """Embed the patches, `hidden [V, 1 + P, C]`.

        Raises:
            ValueError: a grid is not that of the table of positions.
        """
        side = self.config.position_side
        if other := [tuple(each) for each in grid.tolist() if each != [1, side, side]]:
            raise ValueError(f"grid {other[0]}; allowed: {(1, side, side)}, one image of one size")
        device = self.embeddings.patch_embedding.weight.device
        images = patches.to(device).reshape(len(grid), side**2, -1)
        return {HIDDEN: self.pre_layrnorm(self.embeddings(images))}

    def step(self, index: int, state: State) -> State:
        """Run layer `index`; returns the state with its `hidden`, `state` is not changed."""
        return {**state, HIDDEN: self.encoder.layers[index](state[HIDDEN])}

    def merge(self, state: State) -> State:
        """Project the patches without the class token, `hidden [V * P, out_hidden_size]`."""
        patches = state[HIDDEN][:, 1:]
        return {**state, HIDDEN: self.multi_modal_projector(patches).flatten(0, 1)}

    def finish(self, state: Mapping[str, Tensor]) -> Features:
        """Return the projected patches."""
        return {HIDDEN: state[HIDDEN]}
