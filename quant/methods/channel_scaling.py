"""Move a factor per channel from activations into the weights on both sides.

`y = W x` equals `(W diag(1/f)) (diag(f) x)`: if the operation before the layer outputs `f x`
instead of x and the columns of W are divided by f, the float function stays the same. This is the
algebra of SmoothQuant (Xiao et al., arXiv 2211.10438, equation 3, with f the inverse of its s);
with large f it creates activation outliers on purpose.

A channel group is a source, whose output channels take the factors, and its readers, whose input
columns are divided. The family tables list the groups for which this is valid (`NormBinding`,
`PairBinding`). A group has one factor per channel of its source, but its readers may see a channel
in several columns: the merger reads four tiles of a norm, and under grouped-query attention a value
channel feeds all query heads of its group.

Factors that are powers of two change only exponents: the function stays bit-identical.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ...model.config import ModelConfig
from ...model.families import NormBinding, PairBinding

ChannelGroup = NormBinding | PairBinding

LARGEST = 65280.0
"""Largest bf16 number that fp16 represents. Biases of quantized layers are stored in fp16, so no
tensor may exceed it after scaling."""


def source_of(group: ChannelGroup) -> str:
    """Return the module whose output is scaled, by its name within the block."""
    return group.norm if isinstance(group, NormBinding) else group.source


def readers_of(group: ChannelGroup) -> tuple[str, ...]:
    """Return the linear layers whose columns compensate, by their names within the block."""
    return group.linears if isinstance(group, NormBinding) else (group.target,)


def count_channels(tensors: Mapping[str, Tensor], block: str, group: ChannelGroup) -> int:
    """Count the factors of a group: channels of the norm, or rows of the source's part."""
    rows = tensors[f"{block}.{source_of(group)}.weight"].shape[0]
    return rows if isinstance(group, NormBinding) else rows // group.part[1]


def channel_index(group: ChannelGroup, channels: int, config: ModelConfig) -> Tensor:
    """Return the channel of each input column of the readers, int64 `[K]`."""
    index = torch.arange(channels)
    if isinstance(group, NormBinding):
        return index.repeat(group.tiles)
    if group.grouped_heads:
        text = config.text
        heads = index.reshape(text.num_key_value_heads, text.head_dim)
        shared = text.num_attention_heads // text.num_key_value_heads
        return heads.repeat_interleave(shared, dim=0).flatten()
    return index


def reduce_columns(
    values: Tensor, index: Tensor, channels: int, how: Literal["amax", "mean"]
) -> Tensor:
    """Reduce values per column to values per channel.

    Args:
        values: float32 `[K]`.
        index: from `channel_index`.
        channels: number of channels.
        how: largest or mean value of a channel's columns.

    Returns:
        float32 `[channels]`.
    """
    start = torch.zeros(channels, dtype=values.dtype, device=values.device)
    return start.scatter_reduce(0, index.to(values.device), values, how, include_self=False)


def source_names(tensors: Mapping[str, Tensor], block: str, group: ChannelGroup) -> list[str]:
    """List the tensors whose channels are multiplied: the source's weight and, if any, its bias."""
    names = [f"{block}.{source_of(group)}.{leaf}" for leaf in ("weight", "bias")]
    return [name for name in names if name in tensors]


def reader_names(block: str, group: ChannelGroup) -> list[str]:
    """List the tensors whose columns are divided."""
    return [f"{block}.{reader}.weight" for reader in readers_of(group)]


def rescale_(
    tensors: Mapping[str, Tensor],
    block: str,
    group: ChannelGroup,
    factors: Tensor,
    config: ModelConfig,
    *,
    stored: Mapping[str, torch.dtype] | None = None,
) -> Tensor:
    """Multiply a source's output by `factors` and divide the columns that read it, in place.

    The source is scaled first and rounded to its stored dtype. The columns are then divided by the
    ratio of a norm's rounded to its original weights, not by the requested factors, so that both
    still cancel. (Rows of a linear source round each weight differently, which no column factor
    can undo; powers of two round nothing.)

    Factors are clamped to the range in which every tensor they touch stays normal in its dtype and
    within fp16; the range always contains 1. A silent channel, whose source is zero, keeps 1.

    Args:
        tensors: weights by name, modified in place.
        block: module path of the block.
        group: channel group of that block.
        factors: `[channels]`, positive and finite.
        config: of the model; gives heads and head width.
        stored: dtypes in the checkpoint by tensor name, where they differ from the tensors'.

    Returns:
        float32 `[channels]`, the factors that the columns were divided by.
    """
    stored = stored or {}
    channels = len(factors)
    index = channel_index(group, channels, config).to(factors.device)
    parts = {
        name: _part(tensors[name], group, channels) for name in source_names(tensors, block, group)
    }
    readers = {name: tensors[name] for name in reader_names(block, group)}
    offsets = {name: _offset(name, group) for name in parts}
    low, high = _limits(parts, offsets, readers, index, stored)
    factors = factors.double().clamp(low.double(), high.double())
    realized = torch.full_like(factors, torch.nan)
    for name, part in parts.items():
        offset = _offset(name, group)
        before = part.to(torch.float64, copy=True) + offset
        part.copy_(_scaled(part, _along_rows(factors, part), stored.get(name), offset))
        if isinstance(group, NormBinding):
            # 0 / 0 = NaN where the weight is zero: the bias, if there is one, decides.
            ratio = ((part.double() + offset) / before).to(factors.device)
            realized = torch.where(realized.isnan(), ratio, realized)
    realized = torch.where(realized.isnan(), factors, realized)
    for name, weight in readers.items():
        weight.copy_(_scaled(weight, 1 / realized[index], stored.get(name)))
    return realized.float()


def _part(tensor: Tensor, group: ChannelGroup, channels: int) -> Tensor:
    """Return a view of the rows of a source tensor that belong to the group."""
    if isinstance(group, NormBinding):
        return tensor
    start = group.part[0] * channels
    return tensor[start : start + channels]


def _offset(name: str, group: ChannelGroup) -> float:
    """Return what a norm adds to its weight: `offset + w` becomes `f (offset + w)`."""
    return group.offset if isinstance(group, NormBinding) and name.endswith(".weight") else 0.0


def _scaled(
    tensor: Tensor, factors: Tensor, stored: torch.dtype | None, offset: float = 0.0
) -> Tensor:
    """Multiply, with the offset, in float32 or wider and round once."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    value = (tensor.to(wide) + offset) * factors.to(tensor.device, wide) - offset
    return value.to(stored or tensor.dtype)


def _along_rows(factors: Tensor, tensor: Tensor) -> Tensor:
    return factors.to(tensor.device).reshape(-1, *[1] * (tensor.dim() - 1))


def _limits(
    parts: Mapping[str, Tensor],
    offsets: Mapping[str, float],
    readers: Mapping[str, Tensor],
    index: Tensor,
    stored: Mapping[str, torch.dtype],
) -> tuple[Tensor, Tensor]:
    """Compute the smallest and the largest allowed factor of each channel.

    The largest magnitude of a channel must stay at most `LARGEST` and at least the smallest normal
    number of its dtype: below that, values lose bits and the product is no longer the same. With an
    offset the stored number is near its negative, where the dtype has a fixed spacing.
    """
    channels = next(iter(parts.values())).shape[0]
    low = torch.zeros(channels, device=index.device)
    high = torch.full_like(low, torch.inf)
    silent = torch.ones_like(low, dtype=torch.bool)
    for name, part in parts.items():
        size = (part.float() + offsets[name]).abs().reshape(channels, -1).amax(dim=1)
        size = size.to(index.device)
        high = torch.minimum(high, LARGEST / size)
        silent &= size == 0
        if name.endswith(".weight"):  # a bias that underflows is negligible next to the weight
            limits = torch.finfo(stored.get(name, part.dtype))
            smallest = limits.eps * abs(offsets[name]) if offsets[name] else limits.tiny
            least = smallest / size
            low = torch.maximum(low, least.masked_fill(size == 0, 0.0))
    for weight in readers.values():
        columns = weight.float().abs().amax(dim=0).to(index.device)
        size = reduce_columns(columns, index, channels, "amax")
        low = torch.maximum(low, size / LARGEST)
        most = size / torch.finfo(weight.dtype).tiny
        high = torch.minimum(high, most.masked_fill(size == 0, torch.inf))
    low, high = low.clamp_max(1.0), high.clamp_min(1.0)
    return low.masked_fill(silent, 1.0), high.masked_fill(silent, 1.0)
