"""Expected size of the checkpoint once `vlpress pack` has coded it, from samples of the weights.

A few rows of some layers are rounded to nearest, with the zeros of a mask by magnitude, and encoded
as the plan's format does; a solver's integers have nearly the same distribution. Tensors that stay
as they are, are sampled directly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...model.byte_parts import part_finder
from ...model.checkpoint import CheckpointReader
from ...model.families import EMBEDDING
from ...model.packed.estimate import coded_share
from ..checkpoint.formats.format import Format
from ..checkpoint.formats.table import find_format
from ..methods.masks import choose_zeros, hold_zeros
from ..recipe.mask import MaskRule
from ..recipe.scheme import GridScheme
from .plan import Plan, PlanRow

LAYERS = 3
"""Layers that are sampled per part and scheme: the first, the last and those between, evenly."""
ROWS = 128
"""Rows of each, as many as the largest block that shares a scale."""
KEPT_BYTES = 2**20
"""Bytes that are sampled of each of the largest tensors that stay as they are."""
KEPT_TENSORS = 3


def packed_parts(plan: Plan, reader: CheckpointReader, dtype: torch.dtype) -> dict[str, int]:
    """Estimate the packed size of a plan's checkpoint.

    Args:
        plan: the plan.
        reader: of the source, of which a few rows are read; they stand for those of a prepared
            checkpoint.
        dtype: that the weights are stored in.

    Returns:
        Bytes by part, with the keys of `Plan.candidate_parts`.

    Raises:
        ValueError: a sampled tensor cannot be read.
    """
    totals = dict.fromkeys(plan.candidate_parts, 0.0)
    quantized = dict.fromkeys(plan.candidate_parts, 0)
    for rows in _by_part_and_grid(plan.quantized).values():
        format_, _ = find_format(plan.contents, plan.format)
        part, size = rows[0].spec.part, sum(row.packed_bytes for row in rows)
        quantized[part] += size
        totals[part] += size * _quantized_share(rows, plan, reader, format_, dtype)
    kept = _largest_kept(plan, reader)
    for name, size in plan.candidate_parts.items():
        totals[name] += (size - quantized[name]) * _kept_share(kept[name], reader, dtype)
    return {name: round(size) for name, size in totals.items()}


def _by_part_and_grid(rows: Iterable[PlanRow]) -> Mapping[object, list[PlanRow]]:
    groups: dict[object, list[PlanRow]] = {}
    for row in rows:
        assert row.step is not None
        keep = row.step.mask.keep if row.step.mask else None
        groups.setdefault((row.spec.part, row.step.scheme, keep), []).append(row)
    return groups


def _quantized_share(
    rows: Sequence[PlanRow],
    plan: Plan,
    reader: CheckpointReader,
    format_: Format,
    dtype: torch.dtype,
) -> float:
    """Return the coded share of layers of one part, scheme and share of zeros."""
    assert rows[0].step is not None
    scheme, mask = rows[0].step.scheme, rows[0].step.mask
    assert isinstance(scheme, GridScheme)
    tensors: dict[str, Tensor] = {}
    for row in _evenly(rows, LAYERS):
        name = _similar_weight(row, plan, reader)
        columns = row.spec.in_features
        weight = reader.first_rows(name, ROWS)[:, :columns].to(dtype)
        weight = pad(weight, (0, columns - weight.shape[1]))
        if mask is not None:
            weight = hold_zeros(weight, choose_zeros(weight, MaskRule(mask.keep, "magnitude")))
        grid = scheme.fit_for_rounding(weight)
        rounded = grid.compressed(grid.nearest(weight)).with_input_range(1.0)
        encoded = format_.encode(rounded, dtype)
        tensors |= {f"{row.name}.{part}": tensor for part, tensor in encoded.items()}
    return coded_share(tensors)


def _similar_weight(row: PlanRow, plan: Plan, reader: CheckpointReader) -> str:
    """Return the name of a tensor that is, or stands for, the float weight of a layer.

    A tied head has the weight of the embedding; experts that are stored in one tensor are
    represented by another layer of their part that is as wide.
    """
    if _weight_name(row) in reader:
        return _weight_name(row)
    for name in (_weight_name(other) for other in plan.rows if other.spec.part == row.spec.part):
        if name in reader and reader.shape(name)[1] >= row.spec.in_features:
            return name
    return f"{EMBEDDING}.weight"


def _weight_name(row: PlanRow) -> str:
    return f"{row.name}.weight"


def _evenly(rows: Sequence[PlanRow], count: int) -> list[PlanRow]:
    last = len(rows) - 1
    positions = {round(i * last / max(1, count - 1)) for i in range(count)} if rows else set()
    return [rows[position] for position in sorted(positions)]


def _largest_kept(plan: Plan, reader: CheckpointReader) -> dict[str, list[str]]:
    """Return the names of the largest tensors of each part that stay as they are."""
    taken = {_weight_name(row) for row in plan.quantized}
    names: dict[str, list[str]] = {part: [] for part in plan.candidate_parts}
    part_of = part_finder(plan.config)
    for name in sorted(reader.names(), key=reader.nbytes, reverse=True):
        of_part = names[part_of(name)]
        has_rows = reader.shape(name) and reader.nbytes(name)
        if name not in taken and has_rows and len(of_part) < KEPT_TENSORS:
            of_part.append(name)
    return names


def _kept_share(names: Sequence[str], reader: CheckpointReader, dtype: torch.dtype) -> float:
    tensors = {}
    for name in names:
        of_row = reader.nbytes(name) // reader.shape(name)[0]
        values = reader.first_rows(name, max(1, KEPT_BYTES // of_row))
        tensors[name] = values.to(dtype) if values.is_floating_point() else values
    return coded_share(tensors)
