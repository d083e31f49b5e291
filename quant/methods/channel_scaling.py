"""Move a factor from activations into the weights on both sides; the function stays the same.

``y = W x`` equals ``(W diag(1/f)) (diag(f) x)``: if the layer before can be made to give ``f x``
instead of x, the columns of W take ``1/f``. This is the algebra of SmoothQuant (Xiao et al., arXiv
2211.10438, equation 3, with f the inverse of its s) and, run backwards, makes outliers on purpose.
Where this is allowed is data (`NormBinding`, `PairBinding` of the family tables).

A binding has one factor per channel of its source. Its readers may see a channel in several
columns: the merger reads four tiles of a norm, and under grouped-query attention a value channel
feeds all query heads of its group.

Powers of two change only exponents, so they leave the function the same to the last bit.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ...model.config import ModelConfig
from ...model.families import NormBinding, PairBinding

Binding = NormBinding | PairBinding

# Biases of quantized layers are stored in fp16; nothing that takes a factor may outgrow it. (The
# largest bf16 number that fp16 holds.)
LARGEST = 65280.0


def source_of(binding: Binding) -> str:
    """The module whose output is scaled, by its name within the block."""
    return binding.norm if isinstance(binding, NormBinding) else binding.source


def readers_of(binding: Binding) -> tuple[str, ...]:
    """The linear layers whose columns make up for it, by their names within the block."""
    return binding.linears if isinstance(binding, NormBinding) else (binding.target,)


def count_channels(tensors: Mapping[str, Tensor], block: str, binding: Binding) -> int:
    """How many factors a binding takes: channels of the norm, or rows of the source's part."""
    rows = tensors[f"{block}.{source_of(binding)}.weight"].shape[0]
    return rows if isinstance(binding, NormBinding) else rows // binding.part[1]


def channel_index(binding: Binding, channels: int, config: ModelConfig) -> Tensor:
    """int64 ``[K]``: the channel that each input column of the readers carries."""
    index = torch.arange(channels)
    if isinstance(binding, NormBinding):
        return index.repeat(binding.tiles)
    if binding.grouped_heads:
        text = config.text
        heads = index.reshape(text.num_key_value_heads, text.head_dim)
        shared = text.num_attention_heads // text.num_key_value_heads
        return heads.repeat_interleave(shared, dim=0).flatten()
    return index


def reduce_columns(
    values: Tensor, index: Tensor, channels: int, how: Literal["amax", "mean"]
) -> Tensor:
    """Join what columns say into what channels say.

    Args:
        values: float32 ``[K]``.
        index: from `channel_index`.
        channels: of the binding.
        how: the largest or the mean of a channel's columns.

    Returns:
        float32 ``[channels]``.
    """
    start = torch.zeros(channels, dtype=values.dtype, device=values.device)
    return start.scatter_reduce(0, index.to(values.device), values, how, include_self=False)


def source_names(tensors: Mapping[str, Tensor], block: str, binding: Binding) -> list[str]:
    """Tensors whose channels are multiplied: the source's weight and, if it has one, its bias."""
    names = [f"{block}.{source_of(binding)}.{leaf}" for leaf in ("weight", "bias")]
    return [name for name in names if name in tensors]


def reader_names(block: str, binding: Binding) -> list[str]:
    """Tensors whose columns are divided."""
    return [f"{block}.{reader}.weight" for reader in readers_of(binding)]


def rescale_(
    tensors: Mapping[str, Tensor],
    block: str,
    binding: Binding,
    factors: Tensor,
    config: ModelConfig,
    *,
    stored: Mapping[str, torch.dtype] | None = None,
) -> Tensor:
    """Multiply what a source gives by `factors` and divide the columns that read it; in place.

    The source goes first, rounded to what its tensors hold. The columns then take what became of a
    norm's factors by that rounding, so that the two still cancel. (Rows of a linear source round
    each weight by itself, which nothing can take back; powers of two round nothing.)

    Factors are held where all that they touch stays normal numbers of its type and fits fp16 (1 is
    always allowed); a channel that is silent, because its source is zero, keeps 1.

    Args:
        tensors: weights by name.
        block: module path of the block.
        binding: of that block.
        factors: ``[channels]``, positive and finite.
        config: gives heads and head width.
        stored: types that the files hold, by tensor name, where they differ from the tensors'.

    Returns:
        float32 ``[channels]``: the factors that the columns were divided by.
    """
    stored = stored or {}
    channels = len(factors)
    index = channel_index(binding, channels, config).to(factors.device)
    parts = {
        name: _part(tensors[name], binding, channels)
        for name in source_names(tensors, block, binding)
    }
    readers = {name: tensors[name] for name in reader_names(block, binding)}
    low, high = _limits(parts, readers, index, channels)
    factors = factors.double().clamp(low.double(), high.double())
    realized = torch.full_like(factors, torch.nan)
    for name, part in parts.items():
        before = part.to(torch.float64, copy=True)
        part.copy_(_scaled(part, _along_rows(factors, part), stored.get(name)))
        if isinstance(binding, NormBinding):
            ratio = (part.double() / before).to(factors.device)  # 0 / 0 where it cannot tell
            realized = torch.where(realized.isnan(), ratio, realized)
    realized = torch.where(realized.isnan(), factors, realized)
    for name, weight in readers.items():
        weight.copy_(_scaled(weight, 1 / realized[index], stored.get(name)))
    return realized.float()


def _part(tensor: Tensor, binding: Binding, channels: int) -> Tensor:
    """A view of the rows of a source tensor that take part."""
    if isinstance(binding, NormBinding):
        return tensor
    start = binding.part[0] * channels
    return tensor[start : start + channels]


def _scaled(tensor: Tensor, factors: Tensor, stored: torch.dtype | None) -> Tensor:
    wide = torch.promote_types(tensor.dtype, torch.float32)
    value = tensor.to(wide) * factors.to(tensor.device, wide)
    return value.to(stored or tensor.dtype)


def _along_rows(factors: Tensor, tensor: Tensor) -> Tensor:
    return factors.to(tensor.device).reshape(-1, *[1] * (tensor.dim() - 1))


def _limits(
    parts: Mapping[str, Tensor], readers: Mapping[str, Tensor], index: Tensor, channels: int
) -> tuple[Tensor, Tensor]:
    """Smallest and largest factor of each channel."""
    low = torch.zeros(channels, device=index.device)
    high = torch.full_like(low, torch.inf)
    silent = torch.ones_like(low, dtype=torch.bool)
    for name, part in parts.items():
        size = part.float().abs().reshape(channels, -1).amax(dim=1).to(index.device)
        high = torch.minimum(high, LARGEST / size)
        silent &= size == 0
        if name.endswith(".weight"):  # what a bias loses below is nothing beside the weight
            least = torch.finfo(part.dtype).tiny / size
            low = torch.maximum(low, least.masked_fill(size == 0, 0.0))
    for weight in readers.values():
        columns = weight.float().abs().amax(dim=0).to(index.device)
        size = reduce_columns(columns, index, channels, "amax")
        low = torch.maximum(low, size / LARGEST)
        most = size / torch.finfo(weight.dtype).tiny
        high = torch.minimum(high, most.masked_fill(size == 0, torch.inf))
    low, high = low.clamp_max(1.0), high.clamp_min(1.0)
    return low.masked_fill(silent, 1.0), high.masked_fill(silent, 1.0)
