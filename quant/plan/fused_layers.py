"""Layers that engines fuse into one matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...model.config import ModelConfig
from ...model.families import family_of
from .experts import scheme_label

if TYPE_CHECKING:
    from .plan import PlanRow


def fused_layers(config: ModelConfig) -> Iterator[tuple[str, ...]]:
    """Yield the names of the layers of each fused matrix, of the model and of what is carried."""
    family = family_of(config)
    for stage in (*family.stages, *family.carried):
        for index, block in enumerate(stage.blocks(config)):
            for members in stage.fused_groups(config, index):
                yield tuple(f"{block}.{member}" for member in members)


def check_fused(config: ModelConfig, rows: Sequence[PlanRow]) -> None:
    """Refuse different schemes for layers of one matrix.

    Raises:
        ValueError: two layers of a matrix have different schemes.
    """
    schemes = {row.name: row.step.scheme if row.step else None for row in rows}
    for names in fused_layers(config):
        if len({schemes[name] for name in names if name in schemes}) > 1:
            listed = ", ".join(f"{name}: {scheme_label(schemes[name])}" for name in names)
            raise ValueError(
                "engines fuse these layers into one matrix, which has one scheme, so they must "
                f"share it ({listed}); give all the same grid, bits and group_size"
            )


def with_fused(config: ModelConfig, rows: Sequence[PlanRow]) -> tuple[PlanRow, ...]:
    """Name the fused layers in the rows whose scheme has a scale of the whole matrix."""
    fused = {name: names for names in fused_layers(config) for name in names}
    return tuple(
        replace(row, fused=fused[row.name])
        if row.step is not None and row.step.scheme.has_matrix_scale and row.name in fused
        else row
        for row in rows
    )
