"""A compressed weight of levels of a table times a scale per group, see `recipe/grids.py`.

Letters: N = out_features, K = in_features, R and G = rows and columns of the scales
(`TableScheme.scale_shape`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...compressed_weight import CompressedWeight
from ...recipe.scheme import TableScheme
from .activation_rounding import calibrated_input_scale
from .levels import level_values

if TYPE_CHECKING:
    from ...runtime.compressed_linear import CompressedLinear

CHUNK_ELEMENTS = 2**20
"""Weights per chunk: bounds the temporaries of `dequantize`."""


@dataclass(frozen=True)
class TableWeight:
    """A matrix of positions in a table of levels, unpacked."""

    indices: Tensor
    """uint8 `[N, K]`."""
    scales: Tensor
    """float32 `[R, G]`, positive, as they are stored."""
    scheme: TableScheme
    divisor: Tensor | None = None
    """float32 scalar, for scales in E4M3 only: the effective scales are the stored ones over it."""
    input_scale: Tensor | None = None
    """float32 scalar, with a calibrated input only: its scale, or the divisor of its scales."""

    @property
    def out_features(self) -> int:
        """Number of rows."""
        return self.indices.shape[0]

    @property
    def in_features(self) -> int:
        """Number of columns."""
        return self.indices.shape[1]

    def row_scales(self) -> Tensor:
        """Return the effective scales of each row, float32 `[N, G]`."""
        return effective_scales(self.scales, self.divisor, self.scheme, self.out_features)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """See `CompressedWeight.dequantize`."""
        weight = torch.empty(self.indices.shape, dtype=dtype, device=self.indices.device)
        scales = self.row_scales()
        for rows in row_chunks(self.out_features, self.in_features):
            weight[rows] = scaled_levels(self.indices[rows], scales[rows], self.scheme)
        return weight

    def tensors(self) -> dict[str, Tensor]:
        """See `CompressedWeight.tensors`."""
        named = {
            "indices": self.indices,
            "scales": self.scales,
            "divisor": self.divisor,
            "input_scale": self.input_scale,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def equals(self, other: CompressedWeight) -> bool:
        """See `CompressedWeight.equals`."""
        if not isinstance(other, TableWeight) or self.scheme != other.scheme:
            return False
        mine, others = self.tensors(), other.tensors()
        return mine.keys() == others.keys() and all(
            torch.equal(mine[name], others[name]) for name in mine
        )

    def with_input_range(self, largest: float) -> TableWeight:
        """See `CompressedWeight.with_input_range`."""
        scale = calibrated_input_scale(largest, self.scheme)
        return self if scale is None else replace(self, input_scale=scale.to(self.scales.device))

    def calibration_layer(self, bias: Tensor | None, dtype: torch.dtype | None) -> CompressedLinear:
        """See `CompressedWeight.calibration_layer`."""
        from ...runtime.linear import storable_bias
        from ...runtime.table_linear import TableLinear

        bias = None if bias is None else storable_bias(bias.detach())
        return TableLinear(self, bias, dtype)

    def inference_layer(self, bias: Tensor | None) -> CompressedLinear:
        """See `CompressedWeight.inference_layer`."""
        from ...runtime.table_linear import TableLinear

        return TableLinear(self, bias)


def effective_scales(
    stored: Tensor, divisor: Tensor | None, scheme: TableScheme, rows: int
) -> Tensor:
    """Return the effective scales of each row.

    Args:
        stored: float32 `[R, G]`.
        divisor: float32 scalar or None.
        scheme: of the weight.
        rows: N.

    Returns:
        float32 `[N, G]`.
    """
    scales = stored if divisor is None else stored / divisor
    return scales.repeat_interleave(scheme.scale_rows, dim=0)[:rows]


def scaled_levels(indices: Tensor, scales: Tensor, scheme: TableScheme) -> Tensor:
    """Return levels times scales: uint8 `[n, K]` and float32 `[n, G]` give float32 `[n, K]`."""
    levels = level_values(indices, scheme.table).reshape(*scales.shape, -1)
    return levels.mul_(scales[..., None]).reshape(indices.shape)


def row_chunks(rows: int, columns: int, multiple: int = 1) -> Iterator[slice]:
    """Yield slices of rows with about `CHUNK_ELEMENTS` weights, in multiples of some rows."""
    step = max(1, CHUNK_ELEMENTS // columns // multiple) * multiple
    for begin in range(0, rows, step):
        yield slice(begin, min(begin + step, rows))
