"""Take over the vision tower of a Qwen2.5-VL for a narrower one of a Qwen3-VL, block by block.

The residual stream of the new tower is a projection of the old one's: the directions with most of
the energy, turned so that every vector has mean zero. A LayerNorm then computes what the old
RMSNorm did. In this basis the patch embedding is exact, attention is exact but for the channels
that narrower heads cannot hold, and the merger is cut to its most important neurons. The GELU MLP
has no counterpart, so each block is trained alone to map the old tower's input of that block to its
output, which needs no images and no labels in the loop. Blocks whose attention was windowed learn
to attend locally at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import float32_muon
import torch
import torch.nn.functional as F
from moments import Moments
from teacher import pixel_map
from tiny_data import PackedBatch
from torch import Tensor, nn
from train_tiny import learning_rate

from vlpress.model.deepstack_tower import DeepstackTower, NormedMerger
from vlpress.model.rope import vision_rotary
from vlpress.model.text import State
from vlpress.model.vision import (
    PatchMerger,
    VisionAttention,
    VisionBlock,
    VisionTower,
    vision_layout,
)

PEAK_RATE, WARM_UP = 3e-3, 30  # of the training of a block


@dataclass
class Example:
    """One batch of images with the old tower's hidden states, patches in merge order."""

    batch: PackedBatch  # for the new tower
    states: Tensor  # [blocks + 1, N, old width], before every block and after the last
    features: Tensor  # [N / merge_unit, H]


@dataclass
class Basis:
    """Projection of the old residual stream onto the new one.

    Attributes:
        matrix: float64 `[new, old]`; every column has sum zero.
        norm_scale: Factor from RMSNorm of the old vector to LayerNorm of the new one.
    """

    matrix: Tensor
    norm_scale: float

    def after_norm(self, weight: Tensor, norm: nn.Module) -> Tensor:
        """Weight for inputs from the new norm, `[out, old]` to `[out, new]`."""
        scale = norm.weight
        assert isinstance(scale, Tensor)
        return weight.double() * scale.double() @ self.matrix.t() * self.norm_scale


@torch.no_grad()
def teach(tower: VisionTower, old_batch: PackedBatch, batch: PackedBatch) -> Example:
    """Run the old tower on `old_batch`, the images of `batch` as it normalizes them."""
    state = tower.prepare(old_batch.patches, old_batch.grid)
    back = torch.argsort(state["window_index"])

    def in_merge_order(hidden: Tensor) -> Tensor:
        unit = tower.config.merge_unit
        return hidden.view(-1, unit, hidden.shape[-1])[back].flatten(0, 1)

    states = [in_merge_order(state["hidden"])]
    for index in range(len(tower.blocks)):
        state = tower.step(index, state)
        states.append(in_merge_order(state["hidden"]))
    return Example(batch, torch.stack(states), tower.merge(state)["hidden"])


def find_basis(examples: Sequence[Example], width: int) -> Basis:
    """Directions with most of the energy of the hidden states, each state counted alike."""
    old_width = examples[0].states.shape[-1]
    energy = torch.zeros(old_width, old_width, dtype=torch.float64)
    for example in examples:
        for hidden in example.states.double():
            energy += hidden.t() @ hidden / hidden.square().sum()
    directions = torch.linalg.eigh(energy)[1][:, -(width - 1) :].t()
    generator = torch.Generator().manual_seed(0)
    ones = torch.ones(width, 1, dtype=torch.float64)
    others = torch.randn(width, width - 1, dtype=torch.float64, generator=generator)
    mean_zero = torch.linalg.qr(torch.cat((ones, others), 1))[0][:, 1:]
    return Basis(mean_zero @ directions, math.sqrt(old_width / width))


@torch.no_grad()
def transfer_embedding(old: VisionTower, new: DeepstackTower, basis: Basis) -> None:
    """Take over the patch embedding, with the difference in normalized pixels folded in."""
    scale, shift = pixel_map("qwen3_vl", "qwen2_5_vl")
    weight = old.patch_embed.proj.weight.flatten(1).double()
    pixels = weight.shape[1] // len(scale)  # of one channel in a patch
    projected = basis.matrix @ (weight * scale.repeat_interleave(pixels))
    new.patch_embed.proj.weight.copy_(projected.view_as(new.patch_embed.proj.weight))
    bias = new.patch_embed.proj.bias
    assert bias is not None
    bias.copy_(basis.matrix @ (weight @ shift.repeat_interleave(pixels)))
    new.pos_embed.weight.zero_()


def kept_channels(old_dim: int, new_dim: int) -> Tensor:
    """Channels of an old head whose rotary frequencies come nearest to those of a new one."""
    old_count, new_count = old_dim // 4, new_dim // 4  # pairs that rotate by row
    nearest = [round(index * old_count / new_count) for index in range(new_count)]
    pairs = torch.tensor(nearest + [old_count + index for index in nearest])
    return torch.cat((pairs, old_dim // 2 + pairs))


@torch.no_grad()
def transfer_attention(
    old: VisionAttention, norm: nn.Module, new: VisionAttention, basis: Basis
) -> None:
    """Keep the channels of queries and keys by frequency, those of values by singular value."""
    heads, old_dim, new_dim = (
        old.num_heads,
        old.qkv.out_features // 3 // old.num_heads,
        new.qkv.out_features // 3 // new.num_heads,
    )
    read = basis.after_norm(old.qkv.weight, norm).view(3, heads, old_dim, -1)
    bias = old.qkv.bias.double().view(3, heads, old_dim)
    channels = kept_channels(old_dim, new_dim)
    # Scores are divided by the root of the width of a head.
    scale = (new_dim / old_dim) ** 0.25
    weights = [read[0][:, channels] * scale, read[1][:, channels] * scale]
    biases = [bias[0][:, channels] * scale, bias[1][:, channels] * scale]
    write = (basis.matrix @ old.proj.weight.double()).view(-1, heads, old_dim)
    left, values, right = torch.linalg.svd(torch.einsum("chd,hdi->hci", write, read[2]))
    root = values[:, :new_dim].sqrt()
    weights.append(root[..., None] * right[:, :new_dim])
    biases.append(torch.zeros(heads, new_dim, dtype=torch.float64))
    new.qkv.weight.copy_(torch.stack(weights).flatten(0, 2))
    new.qkv.bias.copy_(torch.stack(biases).flatten())
    output = left[:, :, :new_dim] * root[:, None]  # [heads, new width, new_dim]
    new.proj.weight.copy_(output.transpose(0, 1).flatten(1))
    constant = torch.einsum("chd,hd->c", write, bias[2])  # values' biases pass the softmax as is
    new.proj.bias.copy_(basis.matrix @ old.proj.bias.double() + constant)


@torch.no_grad()
def begin_block(old: VisionBlock, new: VisionBlock, basis: Basis) -> None:
    """Set norms and attention; the MLP is trained from its initial values."""
    for norm in (new.norm1, new.norm2):
        assert isinstance(norm, nn.LayerNorm)
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)
    transfer_attention(old.attn, old.norm1, new.attn, basis)


def rotary(tower: DeepstackTower, example: Example) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine, sine and segment bounds of a batch."""
    layout = vision_layout(example.batch.grid, tower.config)
    cos, sin = vision_rotary(layout["coordinates"], tower.config.head_dim)
    return cos, sin, layout["cu_seqlens"]


def fit_block(
    tower: DeepstackTower, index: int, examples: Sequence[Example], basis: Basis, steps: int
) -> dict[str, Tensor]:
    """Train one block to map the old tower's states before it to those after it.

    Args:
        tower: the new tower, with the block's first values.
        index: of the block.
        examples: the last is held out, and its error is printed.
        basis: projects the states.
        steps: number of batches.

    Returns:
        The block's parameters.
    """
    float32_muon.install()
    block, matrix = tower.blocks[index], basis.matrix.float()
    pairs = [
        (e.states[index] @ matrix.t(), e.states[index + 1] @ matrix.t(), rotary(tower, e))
        for e in examples
    ]
    scale = 1 / float((pairs[0][1] - pairs[0][0]).square().mean())
    flat = [p for p in block.parameters() if p.dim() == 2]
    rest = [p for p in block.parameters() if p.dim() < 2]
    tuners: list[torch.optim.Optimizer] = [
        torch.optim.Muon(flat, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0),
    ]

    def error(pair: tuple[Tensor, Tensor, tuple[Tensor, ...]]) -> Tensor:
        return F.mse_loss(block(pair[0], *pair[2]), pair[1]) * scale

    order = torch.randint(len(pairs) - 1, (steps,), generator=torch.Generator().manual_seed(index))
    for step, which in enumerate(order.tolist()):
        rate = learning_rate(PEAK_RATE, step, step / steps, WARM_UP)
        torch.autograd.backward(error(pairs[which]))
        for tuner in tuners:
            for group in tuner.param_groups:
                group["lr"] = rate
            tuner.step()
            tuner.zero_grad()
    with torch.no_grad():
        print(f"block {index}: {float(error(pairs[-1])):.4f} of its output is not explained")
    return {name: value.clone() for name, value in block.state_dict().items()}


@torch.no_grad()
def transfer_merger(
    old: PatchMerger, new: DeepstackTower, examples: Sequence[Example], basis: Basis
) -> None:
    """Take over the merger, its last layer refitted on the outputs of the new blocks."""
    merger, width = new.merger, basis.matrix.shape[1]
    first, last = old.mlp[0], old.mlp[2]
    assert isinstance(merger, NormedMerger)
    nn.init.ones_(merger.norm.weight)
    nn.init.zeros_(merger.norm.bias)
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    tiles = first.weight.view(-1, width)
    weight = basis.after_norm(tiles, old.ln_q).view(len(first.weight), -1).float()
    seen = Moments()
    for example in examples:
        normed = merger.norm(last_state(new, example)).view(-1, merger.width)
        seen.add(torch.cat((F.gelu(F.linear(normed, weight, first.bias)), example.features), 1))
    neurons, kept_count = len(weight), merger.linear_fc1.out_features
    contribution = seen.sum.diagonal()[:neurons] * last.weight.double().square().sum(0)
    kept = contribution.topk(kept_count).indices.sort().values
    constant = torch.tensor([len(seen.sum) - 1])
    outputs = torch.arange(neurons, len(seen.sum) - 1)
    refitted = seen.solve(torch.cat((kept, constant)), outputs)
    merger.linear_fc1.weight.copy_(weight[kept])
    merger.linear_fc1.bias.copy_(first.bias[kept])
    merger.linear_fc2.weight.copy_(refitted[:-1].t())
    merger.linear_fc2.bias.copy_(refitted[-1])


def last_state(tower: DeepstackTower, example: Example) -> Tensor:
    """Hidden states after the last block, `[N, C]`."""
    state: State = tower.prepare(example.batch.patches, example.batch.grid)
    for index in range(len(tower.blocks)):
        state = tower.step(index, state)
    return state["hidden"]
