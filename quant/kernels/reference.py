"""Linear layers with quantized weights in plain torch: the specification and the fallback.

`weight_only_linear` dequantizes the weight and computes in floats; so does a product with
`dequantize_levels`, for weights that are levels of a table. `integer_linear` quantizes the
input to int8 too and multiplies integers, whose sums are exact: every kernel must reproduce them
bit for bit, in any order of summation.

Layout of the prepacked weight (created once, when a layer is loaded): uint8, row-major along the
input features. Up to 4 bits, two neighbouring inputs share a byte, the even one in the low half;
above 4 bits, each byte holds one value.

Letters: N = out_features, K = in_features, G = groups per row.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# Columns per float32 product, whose integer sums are then exact: 512 * 128 * 255 < 2**24.
_EXACT_COLUMNS = 512
# Weights whose levels are looked up at a time: bounds the temporaries.
_CHUNK_WEIGHTS = 2**20


def prepack(integers: Tensor, bits: int) -> Tensor:
    """Pack integers for the reference kernel.

    Args:
        integers: uint8 `[N, K]`.
        bits: 2 to 8.

    Returns:
        uint8, `[N, K / 2]` up to 4 bits, else `[N, K]`.

    Raises:
        ValueError: K is odd with up to 4 bits.
    """
    if bits > 4:
        return integers.contiguous()
    if integers.shape[1] % 2:
        raise ValueError(
            f"in_features {integers.shape[1]} is odd; {bits}-bit weights come in pairs"
        )
    return integers[:, 0::2] | (integers[:, 1::2] << 4)


def unprepack(packed: Tensor, bits: int) -> Tensor:
    """Undo `prepack`: uint8 `[N, K]`."""
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
    """Compute the float matrix `scale * (q - zero_point)` in float32, rounded once to `dtype`.

    Args:
        packed: from `prepack`.
        scales: float `[N, G]`.
        zero_points: uint8 `[N, G]`.
        bits: 2 to 8.
        dtype: dtype of the result.
        group_index: int32 `[K]`, or None for consecutive groups.

    Returns:
        `[N, K]`.
    """
    values = unprepack(packed, bits).float()
    scales, offsets = scales.float(), zero_points.float()
    if group_index is not None:
        columns = group_index.long()
        return ((values - offsets[:, columns]) * scales[:, columns]).to(dtype)
    rows, groups = scales.shape
    grouped = values.reshape(rows, groups, -1)
    # In place: a float32 copy of the weight is the largest temporary of a layer.
    grouped.sub_(offsets[..., None]).mul_(scales[..., None])
    return grouped.reshape(rows, -1).to(dtype)


def dequantize_levels(
    packed: Tensor, scales: Tensor, levels: Tensor, bits: int, dtype: torch.dtype
) -> Tensor:
    """Compute the float matrix `scale * level` in float32, rounded once to `dtype`.

    Args:
        packed: codes, or positions of levels, from `prepack`.
        scales: float32 `[N, G]`.
        levels: float32, by code or position; NaN where there is none.
        bits: of a code, 1 to 8.
        dtype: dtype of the result.

    Returns:
        `[N, K]`.
    """
    rows, groups = scales.shape
    columns = packed.shape[1] * (2 if bits <= 4 else 1)
    weight = torch.empty(rows, columns, dtype=dtype, device=packed.device)
    step = max(1, _CHUNK_WEIGHTS // columns)
    for begin in range(0, rows, step):
        part = slice(begin, begin + step)
        codes = unprepack(packed[part], bits)
        values = levels.index_select(0, codes.reshape(-1).int())
        values = values.reshape(len(codes), groups, -1).mul_(scales[part, :, None])
        weight[part] = values.reshape(codes.shape)
    return weight


def weight_only_linear(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    bits: int,
    bias: Tensor | None = None,
    group_index: Tensor | None = None,
) -> Tensor:
    """Compute `x @ W' + bias` with W dequantized to the dtype of `x`.

    Args:
        x: `[..., K]` float.
        packed: from `prepack`.
        scales: float `[N, G]`.
        zero_points: uint8 `[N, G]`.
        bits: 2 to 8.
        bias: `[N]` or None.
        group_index: int32 `[K]`, or None for consecutive groups.

    Returns:
        `[..., N]` in the dtype of `x`.
    """
    weight = dequantize(packed, scales, zero_points, bits, x.dtype, group_index)
    return F.linear(x, weight, None if bias is None else bias.to(x.dtype))


def quantize_activations(x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantize activations to symmetric int8.

    Without `scale`, each token has its own, `absmax / 127`, or 1 if the token is zero. Levels are
    `x / scale` in float32, rounded to nearest (ties to even) and clamped to -128 to 127; with a
    scale per token the clamp has no effect.

    Args:
        x: `[..., K]` float, finite. A token that is not finite gets a scale that is not finite;
            with a given scale, infinities saturate and NaN becomes 0.
        scale: float32 scalar for the whole tensor, or None for one per token.

    Returns:
        int8 `[..., K]` and the float32 scales, `[..., 1]` or the scalar.
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
    """Compute `x @ W' + bias` with the input quantized to int8 (see `quantize_activations`).

    For each token and each group of columns the sum of `level * (q - zero_point)` is exact; it
    fits int32 up to 65793 columns. The sums are converted to float32, multiplied by their group's
    weight scale and added in the order of the groups. The token's scale, then the bias, are applied
    last.

    Args:
        x: `[..., K]` float.
        packed: from `prepack`.
        scales: float `[N, G]`.
        zero_points: uint8 `[N, G]`.
        bits: 2 to 8.
        bias: `[N]` or None.
        group_index: int32 `[K]`, or None for consecutive groups.
        input_scale: float scalar, or None for one scale per token.

    Returns:
        `[..., N]` in the dtype of `x`.
    """
    scale = None if input_scale is None else input_scale.float()
    levels, token_scales = quantize_activations(x.reshape(-1, x.shape[-1]), scale)
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
    """Columns of each group."""
    for group in range(groups):
        if group_index is not None:
            yield torch.nonzero(group_index == group)[:, 0]
        else:
            width = columns // groups
            yield slice(group * width, (group + 1) * width)


def _integer_product(levels: Tensor, weights: Tensor) -> Tensor:
    """Compute `levels @ weights'` exactly in int32, from integers stored in float32.

    torch has no int8 or int32 matrix product on all devices; float32 is exact up to 2**24.
    """
    total = torch.zeros(len(levels), len(weights), dtype=torch.int32, device=levels.device)
    for start in range(0, levels.shape[1], _EXACT_COLUMNS):
        columns = slice(start, start + _EXACT_COLUMNS)
        total += (levels[:, columns] @ weights[:, columns].t()).to(torch.int32)
    return total
