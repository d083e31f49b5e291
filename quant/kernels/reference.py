"""Products with quantized weights in plain torch: the specification, and the answer anywhere.

`weight_only_linear` computes in floats with the weight dequantized. `integer_linear` rounds the
input to int8 as well and multiplies integers; whatever order a kernel adds in, its sums of integers
are these.

Layout of the prepacked weight (made once at load): uint8, row-major along the input features.
Up to 4 bits two neighbours share a byte, the even one in the low half; above that one byte holds
one value. Letters: N = out_features, K = in_features, G = groups per row.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# Columns whose products float32 adds without rounding: 512 * 128 * 255 < 2**24.
_EXACT_COLUMNS = 512


def prepack(integers: Tensor, bits: int) -> Tensor:
    """uint8 ``[N, K]`` to the prepacked form: ``[N, K / 2]`` up to 4 bits, else ``[N, K]``.

    Raises:
        ValueError: an odd K with two values per byte.
    """
    if bits > 4:
        return integers.contiguous()
    if integers.shape[1] % 2:
        raise ValueError(
            f"in_features {integers.shape[1]} is odd; {bits}-bit weights come in pairs"
        )
    return integers[:, 0::2] | (integers[:, 1::2] << 4)


def unprepack(packed: Tensor, bits: int) -> Tensor:
    """Undo `prepack`: uint8 ``[N, K]``."""
    if bits > 4:
        return packed
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)


def dequantize(
    packed: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    bits: int,
    dtype: torch.dtype,
    group_index: Tensor | None = None,
) -> Tensor:
    """The float matrix ``[N, K]``: ``scale * (q - zero_point)`` in float32, rounded once.

    Args:
        packed: from `prepack`.
        scales: float ``[N, G]``.
        zero_points: uint8 ``[N, G]``.
        bits: 2 to 8.
        dtype: of the result.
        group_index: int32 ``[K]``, or None for consecutive groups.
    """
    values = unprepack(packed, bits).float()
    scales, offsets = scales.float(), zero_points.float()
    if group_index is not None:
        columns = group_index.long()
        return ((values - offsets[:, columns]) * scales[:, columns]).to(dtype)
    rows, groups = scales.shape
    grouped = values.reshape(rows, groups, -1)
    grouped.sub_(offsets[..., None]).mul_(scales[..., None])
    return grouped.reshape(rows, -1).to(dtype)


def weight_only_linear(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    bits: int,
    bias: Tensor | None = None,
    group_index: Tensor | None = None,
) -> Tensor:
    """``x @ W' + bias`` with W dequantized to the dtype of `x`.

    Args:
        x: ``[..., K]`` float.
        packed: from `prepack`.
        scales: float ``[N, G]``.
        zero_points: uint8 ``[N, G]``.
        bits: 2 to 8.
        bias: ``[N]`` or None.
        group_index: int32 ``[K]``, or None for consecutive groups.

    Returns:
        ``[..., N]`` in the dtype of `x`.
    """
    weight = dequantize(packed, scales, zero_points, bits, x.dtype, group_index)
    return F.linear(x, weight, None if bias is None else bias.to(x.dtype))


def quantize_activations(x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Round activations to symmetric int8.

    Without a scale every token has its own, ``absmax / 127``, and 1 if the token is zero. Levels
    are ``x / scale`` in float32, rounded to nearest (ties to even) and clamped to -128 to 127; only
    a given scale can make the clamp act.

    Args:
        x: ``[..., K]`` float, finite. (With scales of its own, a token that is not finite gives a
            scale that is not; a given scale saturates.)
        scale: float32 scalar for the whole tensor, or None for one per token.

    Returns:
        int8 ``[..., K]`` and the float32 scales, ``[..., 1]`` or the scalar.
    """
    values = x.float()
    if scale is None:
        scale = values.abs().amax(dim=-1, keepdim=True) / 127
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    levels = (values / scale).round().clamp(-128, 127)
    return levels.nan_to_num(0.0).to(torch.int8), scale


def integer_linear(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    bits: int,
    bias: Tensor | None = None,
    group_index: Tensor | None = None,
    input_scale: Tensor | None = None,
) -> Tensor:
    """``x @ W' + bias`` with the input rounded to int8 (see `quantize_activations`).

    For each token and each group of columns the sum of ``level * (q - zero_point)`` is exact; it
    fits int32 up to 65793 columns. Each sum becomes float32, takes its group's weight scale, and
    the groups are added in order; the token's scale, then the bias, come last.

    Args:
        x: ``[..., K]`` float.
        packed: from `prepack`.
        scales: float ``[N, G]``.
        zero_points: uint8 ``[N, G]``.
        bits: 2 to 8.
        bias: ``[N]`` or None.
        group_index: int32 ``[K]``, or None for consecutive groups.
        input_scale: float scalar, or None to scale every token by itself.

    Returns:
        ``[..., N]`` in the dtype of `x`.
    """
    given = None if input_scale is None else input_scale.float()
    levels, token_scales = quantize_activations(x.reshape(-1, x.shape[-1]), given)
    weights = unprepack(packed, bits)
    total = torch.zeros(len(levels), len(weights), device=x.device)
    for group, columns in enumerate(_group_columns(weights.shape[1], scales.shape[1], group_index)):
        centred = weights[:, columns].float() - zero_points[:, group, None].float()
        sums = _integer_product(levels[:, columns].float(), centred)
        total.addcmul_(sums.float(), scales[:, group].float())
    total.mul_(token_scales)
    if bias is not None:
        total.add_(bias.float())
    return total.to(x.dtype).reshape(*x.shape[:-1], -1)


def _group_columns(
    columns: int, groups: int, group_index: Tensor | None
) -> Iterator[slice | Tensor]:
    """Where the columns of each group lie."""
    for group in range(groups):
        if group_index is not None:
            yield torch.nonzero(group_index == group)[:, 0]
        else:
            width = columns // groups
            yield slice(group * width, (group + 1) * width)


def _integer_product(levels: Tensor, weights: Tensor) -> Tensor:
    """int32 ``levels @ weights'`` of whole numbers kept in float32; exact."""
    total = torch.zeros(len(levels), len(weights), dtype=torch.int32, device=levels.device)
    for start in range(0, levels.shape[1], _EXACT_COLUMNS):
        part = slice(start, start + _EXACT_COLUMNS)
        total += (levels[:, part] @ weights[:, part].t()).to(torch.int32)
    return total
