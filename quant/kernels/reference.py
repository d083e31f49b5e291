"""Weight-only matrix product in plain torch: the specification, and the answer on any machine.

Layout of the prepacked weight (made once at load): uint8, row-major along the input features.
Up to 4 bits two neighbours share a byte, the even one in the low half; above that one byte holds
one value. Letters: N = out_features, K = in_features, G = groups per row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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
