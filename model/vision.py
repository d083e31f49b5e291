"""The vision tower of Qwen2-VL and Qwen2.5-VL.

Qwen2-VL (arXiv 2409.12191): LayerNorm, QuickGELU, every block attends within one frame.
Qwen2.5-VL (arXiv 2502.13923, section 2.1.1): RMSNorm, SwiGLU, most blocks attend inside windows of
112 pixels. Attribute names equal the checkpoint's.

Window attention: a window of 112 pixels is 8 x 8 patches, or 4 x 4 merged tokens. Patches and their
rotary angles are sorted by window once, before the first block, so that a window is a run of rows
and attention within windows is attention within segments, like attention within frames. All other
operations work on single patches and do not depend on the order; the merger's output is sorted
back. At the right and bottom edges windows are smaller, so segments differ in length. Segments of
equal length share one attention call: no mask, no loop over windows.

Letters in shapes: N patches of all visuals together, C width of the tower, D width of one head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import VisionConfig
from .features import HIDDEN, Features
from .fused_linear import project
from .rope import rotate, vision_rotary
from .text import RMSNorm, State
from .tower import Tower

EPS = 1e-6  # the same in both families, and not a field of config.json


class PatchEmbed(nn.Module):
    """Linear map of flattened patches, stored as the checkpoint's 3-D convolution.

    The convolution's stride equals its kernel, so it is a matrix product, which is much faster.
    """

    def __init__(self, config: VisionConfig, *, bias: bool = False) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(
            config.in_channels, config.hidden_size, kernel_size=kernel, stride=kernel, bias=bias
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches, `[N, channels * frames * patch * patch]` to `[N, C]`."""
        weight, bias = self.proj.weight, self.proj.bias
        # The last cast only acts under autocast: the residual stream keeps the weights' precision.
        return F.linear(patches.to(weight.dtype), weight.flatten(1), bias).to(weight.dtype)


class VisionAttention(nn.Module):
    """Self-attention within segments, with one joint q/k/v projection."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Attend within the segments bounded by `cu_seqlens`, `[N, C]` to `[N, C]`."""
        qkv = self.qkv(x).view(x.shape[0], 3, self.num_heads, -1)
        # Rotation in float32, as the reference does: half precision loses high frequencies.
        rotated = rotate(qkv[:, :2].float(), cos[:, None, None], sin[:, None, None]).to(qkv.dtype)
        qkv = torch.cat((rotated, qkv[:, 2:]), dim=1)
        groups = segment_groups(cu_seqlens)
        if len(groups) == 1:
            mixed = self._attend(qkv, *groups[0].shape)
        else:
            # Sort segments by length, attend with one call per length, and sort back.
            order = torch.cat([rows.flatten() for rows in groups]).to(x.device)
            sorted_qkv = torch.split(qkv[order], [rows.numel() for rows in groups])
            outputs = [
                self._attend(group_qkv, *rows.shape)
                for group_qkv, rows in zip(sorted_qkv, groups, strict=True)
            ]
            mixed = torch.cat(outputs)[torch.argsort(order)]
        out: Tensor = self.proj(mixed)
        return out

    def _attend(self, qkv: Tensor, segments: int, length: int) -> Tensor:
        """Attend within segments of one length.

        Args:
            qkv: `[segments * length, 3, heads, D]`.
            segments: number of segments.
            length: patches per segment.

        Returns:
            `[segments * length, C]`.
        """
        tiles = qkv.view(segments, length, *qkv.shape[1:])
        q, k, v = tiles.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).reshape(segments * length, -1)


class GatedMLP(nn.Module):
    """SwiGLU with biases (Qwen2.5-VL)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP, `[N, C]` to `[N, C]`."""
        gate, up = project(x, self.gate_proj, self.up_proj)
        out: Tensor = self.down_proj(F.silu(gate) * up)
        return out


class QuickGELUMLP(nn.Module):
    """Two linear layers with x * sigmoid(1.702 x) between them (Qwen2-VL)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP, `[N, C]` to `[N, C]`."""
        x = self.fc1(x)
        # 1.702: the constant of "Gaussian Error Linear Units" (arXiv 1606.08415, section 2)
        out: Tensor = self.fc2(x * torch.sigmoid(1.702 * x))
        return out


class VisionBlock(nn.Module):
    """One transformer block of the tower."""

    def __init__(self, config: VisionConfig, mlp: Callable[[VisionConfig], nn.Module]) -> None:
        super().__init__()
        self.norm1 = _norm(config)
        self.norm2 = _norm(config)
        self.attn = VisionAttention(config)
        self.mlp = mlp(config)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Run the block, `[N, C]` to `[N, C]`.

        Args:
            hidden: `[N, C]`.
            cos: float32 `[N, D / 2]`.
            sin: float32 `[N, D / 2]`.
            cu_seqlens: int32 `[segments + 1]`, bounds of the attention segments.
        """
        hidden = hidden + self.attn(self.norm1(hidden), cos, sin, cu_seqlens)
        out: Tensor = hidden + self.mlp(self.norm2(hidden))
        return out


class PatchMerger(nn.Module):
    """MLP that merges `merge_unit` neighbouring patches into one token of the decoder's width."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.width = config.hidden_size * config.merge_unit
        self.ln_q = _norm(config)
        self.mlp = nn.Sequential(
            nn.Linear(self.width, self.width),
            nn.GELU(),
            nn.Linear(self.width, config.out_hidden_size),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Merge patches, `[N, C]` to `[N / merge_unit, out_hidden_size]`."""
        out: Tensor = self.mlp(self.ln_q(hidden).view(-1, self.width))
        return out


class VisionTower(Tower):
    """The tower of Qwen2-VL and Qwen2.5-VL."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        mlp = GatedMLP if config.hidden_act == "silu" else QuickGELUMLP
        self.blocks = nn.ModuleList(VisionBlock(config, mlp) for _ in range(config.depth))
        self.merger = PatchMerger(config)

    def prepare(self, patches: Tensor, grid: Tensor) -> State:
        """Embed the patches and compute the inputs that all blocks share.

        Returns:
            `hidden [N, C]` (sorted by window if the tower has windows), `cos` and `sin`
            (float32 `[N, D / 2]`), `cu_seqlens` (int32 on the CPU: bounds of whole frames) and,
            with windows, `cu_window_seqlens` (int32 on the CPU: bounds of windows) and
            `window_index` (int64 `[N / merge_unit]`, the original index of each merged token).

        Raises:
            ValueError: a grid is not a multiple of the merge size.
        """
        layout = vision_layout(grid, self.config)
        device = self.patch_embed.proj.weight.device
        hidden = self.patch_embed(patches.to(device))
        coordinates = layout.pop("coordinates")
        if (order := layout.get("window_index")) is not None:
            layout["window_index"] = order = order.to(device)
            # Whole merge units are moved, so that the merger still finds its patches together.
            unit = self.config.merge_unit
            hidden = hidden.view(-1, unit, hidden.shape[-1])[order].flatten(0, 1)
            coordinates = coordinates.view(-1, unit, 2)[order.to("cpu")].flatten(0, 1)
        cos, sin = vision_rotary(coordinates.to(device), self.config.head_dim)
        return {"hidden": hidden, "cos": cos, "sin": sin, **layout}

    def segments(self, index: int) -> str:
        """Return the state's key of the segment bounds that block `index` uses."""
        full = self.config.has_full_attention(index)
        return "cu_seqlens" if full else "cu_window_seqlens"

    def step(self, index: int, state: State) -> State:
        """Run block `index`; returns the state with its `hidden`, `state` is not changed."""
        hidden = self.blocks[index](
            state["hidden"], state["cos"], state["sin"], state[self.segments(index)]
        )
        return {**state, "hidden": hidden}

    def merge(self, state: State) -> State:
        """Merge neighbouring patches and undo the window order, `hidden [N / merge_unit, out]`."""
        merged: Tensor = self.merger(state["hidden"])
        if (order := state.get("window_index")) is not None:
            merged = merged[torch.argsort(order)]
        return {**state, "hidden": merged}

    def finish(self, state: Mapping[str, Tensor]) -> Features:
        """Return the merged hidden states alone."""
        return {HIDDEN: state["hidden"]}


def vision_layout(grid: Tensor, config: VisionConfig) -> dict[str, Tensor]:
    """Compute coordinates, attention segments and window order of visuals, all on the CPU.

    Args:
        grid: int64 `[visuals, 3]`: t, h, w of each in patches.
        config: gives patch, merge and window sizes.

    Returns:
        `coordinates` int64 `[N, 2]` (row and column of each patch, in merge order), `cu_seqlens`
        and, with windows, `window_index` and `cu_window_seqlens`; see `VisionTower.prepare`.

    Raises:
        ValueError: a grid is not a multiple of the merge size.
    """
    grids = [(int(t), int(h), int(w)) for t, h, w in grid.tolist()]
    merge = config.spatial_merge_size
    for t, h, w in grids:
        if t < 1 or h < merge or w < merge or h % merge or w % merge:
            raise ValueError(
                f"grid {(t, h, w)}: height and width must be positive multiples of {merge} patches"
            )
    unique = set(grids)
    coordinates = {g: _coordinates(g, merge) for g in unique}
    frames = [h * w for t, h, w in grids for _ in range(t)]
    layout = {
        "coordinates": torch.cat([coordinates[g] for g in grids]),
        "cu_seqlens": _bounds(torch.tensor(frames)),
    }
    if config.is_windowed:
        windows = {g: _windows(g, config) for g in unique}
        starts = [0]
        for t, h, w in grids:
            starts.append(starts[-1] + t * (h // merge) * (w // merge))
        layout["window_index"] = torch.cat(
            [windows[g][0] + start for g, start in zip(grids, starts[:-1], strict=True)]
        )
        layout["cu_window_seqlens"] = _bounds(torch.cat([windows[g][1] for g in grids]))
    return layout


def segment_groups(cu_seqlens: Tensor) -> Sequence[Tensor]:
    """Group segments by length.

    Args:
        cu_seqlens: `[segments + 1]`, bounds of the segments.

    Returns:
        Row indices, int64 `[segments, length]` for every distinct length in ascending order.
    """
    bounds = cu_seqlens.to("cpu", torch.int64)
    starts, lengths = bounds[:-1], bounds.diff()
    return [
        starts[lengths == length][:, None] + torch.arange(int(length))
        for length in torch.unique(lengths)
    ]


def _norm(config: VisionConfig) -> nn.Module:
    if config.norm == "rms":
        return RMSNorm(config.hidden_size, EPS)
    return nn.LayerNorm(config.hidden_size, eps=EPS)


def _bounds(lengths: Tensor) -> Tensor:
    """Cumulative sum from 0, int32 `[segments + 1]`."""
    return F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def _coordinates(grid: tuple[int, int, int], merge: int) -> Tensor:
    """Row and column of each patch of a visual in merge order, int64 `[t * h * w, 2]`."""
    t, h, w = grid
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    both = torch.stack((rows, columns), dim=-1).reshape(h // merge, merge, w // merge, merge, 2)
    return both.transpose(1, 2).reshape(h * w, 2).repeat(t, 1)


def _windows(grid: tuple[int, int, int], config: VisionConfig) -> tuple[Tensor, Tensor]:
    """Indices of a visual's merged tokens in window order, and the patches of each window."""
    side = config.window_size // config.pixel_factor
    t, h, w = grid[0], grid[1] // config.spatial_merge_size, grid[2] // config.spatial_merge_size
    # Pad the grid of indices to whole windows with -1, cut it into tiles, and remove the padding.
    index = torch.arange(t * h * w).reshape(t, h, w)
    padded = F.pad(index, (0, -w % side, 0, -h % side), value=-1)
    rows, columns = padded.shape[1] // side, padded.shape[2] // side
    tiles = padded.view(t, rows, side, columns, side).transpose(2, 3).reshape(-1, side * side)
    return tiles[tiles >= 0], (tiles >= 0).sum(1) * config.merge_unit
