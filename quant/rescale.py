"""Move a factor from activations into the weights on both sides; the function stays the same.

``y = W x`` equals ``(W diag(1/f)) (diag(f) x)``: if the layer before can be made to give ``f x``
instead of x, the columns of W take ``1/f``. This is the algebra of SmoothQuant (Xiao et al., arXiv
2211.10438, equation 3, with f the inverse of its s) and, run backwards, makes outliers on purpose.
Where this is allowed is data (`NormBinding`, `PairBinding` of the family tables).

Powers of two change only exponents, so they leave the function the same to the last bit.
"""

from collections.abc import Mapping

from torch import Tensor

from ..model.config import ModelConfig
from ..model.families import NormBinding, PairBinding


def norm_channels(tensors: Mapping[str, Tensor], block: str, binding: NormBinding) -> int:
    """How many factors a norm binding takes."""
    return tensors[f"{block}.{binding.norm}.weight"].shape[0]


def rescale_norm_(
    tensors: Mapping[str, Tensor], block: str, binding: NormBinding, factors: Tensor
) -> None:
    """Multiply a norm's output by `factors` and divide the columns of what reads it; in place.

    Args:
        tensors: weights by name.
        block: module path of the block.
        binding: of that block.
        factors: ``[channels]``, positive.
    """
    for leaf in ("weight", "bias"):
        name = f"{block}.{binding.norm}.{leaf}"
        if name in tensors:
            tensors[name].mul_(factors.to(tensors[name]))
    columns = factors.repeat(binding.tiles)
    for linear in binding.linears:
        weight = tensors[f"{block}.{linear}.weight"]
        weight.div_(columns.to(weight))


def pair_channels(tensors: Mapping[str, Tensor], block: str, binding: PairBinding) -> int:
    """How many factors a pair binding takes: rows of the source that take part."""
    return tensors[f"{block}.{binding.source}.weight"].shape[0] // binding.part[1]


def rescale_pair_(
    tensors: Mapping[str, Tensor],
    block: str,
    binding: PairBinding,
    factors: Tensor,
    config: ModelConfig,
) -> None:
    """Multiply rows of the source by `factors` and divide the columns that they feed; in place.

    Under grouped-query attention a value channel feeds all query heads of its group, so its
    factor appears once per head among the target's columns.

    Args:
        tensors: weights by name.
        block: module path of the block.
        binding: of that block.
        factors: ``[channels]``, positive; one per row of the source's part.
        config: gives heads and head width.
    """
    index, _ = binding.part
    rows = slice(index * len(factors), (index + 1) * len(factors))
    for leaf in ("weight", "bias"):
        name = f"{block}.{binding.source}.{leaf}"
        if name in tensors:
            part = tensors[name][rows]
            part.mul_(factors.to(part).reshape(-1, *[1] * (part.dim() - 1)))
    columns = factors
    if binding.grouped_heads:
        text = config.text
        heads = factors.reshape(text.num_key_value_heads, text.head_dim)
        shared = text.num_attention_heads // text.num_key_value_heads
        columns = heads.repeat_interleave(shared, dim=0).flatten()
    target = tensors[f"{block}.{binding.target}.weight"]
    target.div_(columns.to(target))
