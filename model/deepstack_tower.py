"""The vision tower of Qwen3-VL ("Qwen3-VL Technical Report", arXiv 2511.21631, section 2).

LayerNorm, tanh-approximated GELU, attention within one frame. A learned table of positions, a
square grid, is interpolated to the grid of every image and added to the patches before the first
block. DeepStack (arXiv 2406.04334): the outputs of a few blocks get mergers of their own, and their
results are added to the hidden states after the first decoder layers. Mergers use the exact GELU.

Letters in shapes: N patches of all visuals together, C width of the tower.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import VisionConfig
from .features import DEEPSTACK, HIDDEN, Features
from .rope import vision_rotary
from .text import State
from .tower import Tower
from .vision import EPS, PatchEmbed, VisionBlock, vision_layout


class TanhGELUMLP(nn.Module):
    """Two linear layers with the tanh approximation of GELU between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.linear_fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP, `[N, C]` to `[N, C]`."""
        out: Tensor = self.linear_fc2(F.gelu(self.linear_fc1(x), approximate="tanh"))
        return out


class NormedMerger(nn.Module):
    """Norm and MLP that merge `merge_unit` neighbouring patches into one decoder token.

    Args:
        config: sizes of the tower.
        norm_merged: whether the norm is over the channels of all merged patches together instead of
            those of each patch.
    """

    def __init__(self, config: VisionConfig, *, norm_merged: bool) -> None:
        super().__init__()
        self.width = config.hidden_size * config.merge_unit
        self.norm_merged = norm_merged
        self.norm = nn.LayerNorm(self.width if norm_merged else config.hidden_size, eps=EPS)
        self.linear_fc1 = nn.Linear(self.width, self.width)
        self.linear_fc2 = nn.Linear(self.width, config.out_hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Merge patches, `[N, C]` to `[N / merge_unit, out_hidden_size]`."""
        if self.norm_merged:
            hidden = hidden.view(-1, self.width)
        normed = self.norm(hidden).view(-1, self.width)
        out: Tensor = self.linear_fc2(F.gelu(self.linear_fc1(normed)))
        return out


def feature_keys(config: VisionConfig) -> tuple[str, ...]:
    """Return the keys of the features of a visual."""
    return HIDDEN, *(f"{DEEPSTACK}{index}" for index in range(len(config.deepstack_visual_indexes)))


class DeepstackTower(Tower):
    """The tower of Qwen3-VL. Its features are `hidden` and one `deepstack.k` per kept output."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config, bias=True)
        table = torch.empty(config.num_position_embeddings, config.hidden_size)
        if not table.is_meta:  # there, torch would import its compiler to fill it: two seconds
            nn.init.normal_(table)
        self.pos_embed = nn.Embedding(len(table), config.hidden_size, _weight=table)
        self.blocks = nn.ModuleList(VisionBlock(config, TanhGELUMLP) for _ in range(config.depth))
        self.merger = NormedMerger(config, norm_merged=False)
        self.kept = len(config.deepstack_visual_indexes)
        self.deepstack_merger_list = nn.ModuleList(
            NormedMerger(config, norm_merged=True) for _ in range(self.kept)
        )

    def prepare(self, patches: Tensor, grid: Tensor) -> State:
        """Embed the patches and their positions, and compute the inputs that all blocks share.

        Returns:
            `hidden [N, C]`, `cos` and `sin` (float32 `[N, D / 2]`), `cu_seqlens` (int32 on the CPU:
            bounds of whole frames).

        Raises:
            ValueError: a grid is not a multiple of the merge size.
        """
        layout = vision_layout(grid, self.config)
        device = self.patch_embed.proj.weight.device
        hidden = self.patch_embed(patches.to(device))
        hidden = hidden + self._positions(grid).to(hidden.dtype)
        cos, sin = vision_rotary(layout["coordinates"].to(device), self.config.head_dim)
        return {"hidden": hidden, "cos": cos, "sin": sin, "cu_seqlens": layout["cu_seqlens"]}

    def segments(self, index: int) -> str:
        """Return the state's key of the segment bounds that block `index` uses."""
        return "cu_seqlens"

    def step(self, index: int, state: State) -> State:
        """Run block `index`; returns the state with its `hidden`, `state` is not changed.

        The output of block `deepstack_visual_indexes[k]` is kept as `deepstack.k`.
        """
        hidden = self.blocks[index](
            state["hidden"], state["cos"], state["sin"], state[self.segments(index)]
        )
        kept = self.config.deepstack_visual_indexes
        if index in kept:
            state = {**state, f"{DEEPSTACK}{kept.index(index)}": hidden}
        return {**state, "hidden": hidden}

    def merge_kept(self, number: int, state: State) -> State:
        """Merge the kept output `deepstack.number`, `[N, C]` to `[N / merge_unit, out]`."""
        key = f"{DEEPSTACK}{number}"
        return {**state, key: self.deepstack_merger_list[number](state[key])}

    def merge(self, state: State) -> State:
        """Merge the output of the last block, `hidden [N, C]` to `[N / merge_unit, out]`."""
        return {**state, HIDDEN: self.merger(state[HIDDEN])}

    def finish(self, state: Mapping[str, Tensor]) -> Features:
        """Return the merged outputs."""
        return {key: state[key] for key in feature_keys(self.config)}

    def _positions(self, grid: Tensor) -> Tensor:
        """Interpolate the position table to all visuals, float32 `[N, C]` in merge order."""
        grids = [(int(t), int(h), int(w)) for t, h, w in grid.tolist()]
        weight, side = self.pos_embed.weight, self.config.position_side
        merge = self.config.spatial_merge_size
        made = {
            (h, w): interpolate_table(weight, side, h, w, merge)
            for h, w in {(h, w) for _, h, w in grids}
        }
        return torch.cat([made[h, w].repeat(t, 1) for t, h, w in grids])


def interpolate_table(table: Tensor, side: int, height: int, width: int, merge: int) -> Tensor:
    """Interpolate a square grid of vectors to another size: bilinear, corners aligned.

    Args:
        table: `[side * side, C]`, row by row.
        side: rows and columns of the table.
        height: rows of the result, a multiple of `merge`.
        width: columns of the result, a multiple of `merge`.
        merge: patches per side of a merged token.

    Returns:
        float32 `[height * width, C]` in merge order.
    """
    low_row, high_row, row_share = _neighbours(height, side)
    low_column, high_column, column_share = _neighbours(width, side)
    total = torch.zeros((), dtype=torch.float32, device=table.device)
    # One corner at a time: all four together would take four times the memory of the result.
    for rows, row_weight in ((low_row, 1 - row_share), (high_row, row_share)):
        for columns, column_weight in ((low_column, 1 - column_share), (high_column, column_share)):
            index = _in_merge_order(rows[:, None] * side + columns, merge).to(table.device)
            weight = _in_merge_order(row_weight[:, None] * column_weight, merge).to(table.device)
            total = total + F.embedding(index, table) * weight[:, None]
    return total


def _neighbours(size: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the two table rows next to each of `size` rows, and the weight of the second."""
    # float32 and this order of operations, as in the reference, so that no index differs.
    position = torch.arange(size, dtype=torch.float32) * (side - 1) / max(size - 1, 1)
    low = position.floor()
    return low.long(), (low.long() + 1).clamp_max(side - 1), position - low


def _in_merge_order(grid: Tensor, merge: int) -> Tensor:
    """Flatten `[height, width]` so that the patches of a merged token are adjacent."""
    height, width = grid.shape
    blocks = grid.reshape(height // merge, merge, width // merge, merge)
    return blocks.transpose(1, 2).flatten()
