"""Round to nearest (RTN): no calibration; the baseline and the fallback of the other methods."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..recipe.scheme import QuantScheme
from .affine import QuantizedWeight
from .grids.integer_grid import fit_for_rounding

CHUNK_ELEMENTS = 2**25
"""Weights that are rounded at a time; in float32 a whole embedding or head takes gigabytes."""


def rtn(
    weight: Tensor,
    scheme: QuantScheme,
    hessian: Tensor | None = None,
    *,
    signed: bool | None = None,
) -> QuantizedWeight:
    """Quantize a matrix by rounding every weight to the nearest integer of its group.

    Args:
        weight: `[out_features, in_features]`, any float dtype.
        scheme: the grid.
        hessian: `[in_features, in_features]`. If given, scales are searched: the largest weights
            of a group are clipped where that lowers the output error (`scale_search.py`).
        signed: whether symmetric scales may be negative; None decides by `may_be_signed`.

    Raises:
        ValueError: the weight is not finite or its width does not divide into groups.
    """
    grid = fit_for_rounding(weight, scheme, hessian, signed=signed)
    return grid.compressed(grid.nearest(weight))


def row_chunks(weight: Tensor) -> tuple[Tensor, ...]:
    """Split a matrix into runs of rows with at most `CHUNK_ELEMENTS` weights, at least one row."""
    return torch.split(weight, chunk_rows(weight.shape[1]))


def chunk_rows(columns: int) -> int:
    """Return the number of rows in a run of `row_chunks`."""
    return max(1, CHUNK_ELEMENTS // columns)


def join_rows(parts: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """Join the rows of weights of one scheme."""
    first, *others = parts
    if not others:
        return first
    return QuantizedWeight(
        torch.cat([part.integers for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat([part.zero_points for part in parts]),
        first.scheme,
    )


def rtn_by_rows(weight: Tensor, scheme: QuantScheme) -> QuantizedWeight:
    """Quantize a matrix as `rtn` does, with less memory: rows do not depend on each other.

    Raises:
        ValueError: see `rtn`.
    """
    return join_rows([rtn(rows, scheme) for rows in row_chunks(weight)])
