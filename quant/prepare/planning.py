"""Plan the preparations of a recipe: the configs and bytes of the checkpoints that they write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ...model.byte_parts import bytes_by_part
from ...model.carried import CarriedTensors
from ...model.config import ModelConfig
from ...model.loading import parameter_shapes
from ..recipe.recipe import Recipe
from ..steps.preparation import Preparation


@dataclass(frozen=True)
class PlannedPreparation:
    """One preparation and the float checkpoint that it will write."""

    preparation: Preparation
    config: ModelConfig
    """Of that checkpoint."""
    summary: str
    """See `Foreseen.summary`."""
    bytes_before: int
    """Tensor bytes of the checkpoint that it reads."""
    bytes_after: int
    """Tensor bytes of the one that it writes."""
    carried: CarriedTensors
    """Tensors of the written checkpoint that the model does not compute with."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON."""
        return {
            **self.preparation.to_dict(),
            "summary": self.summary,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
        }


def plan_preparations(
    config: ModelConfig,
    recipe: Recipe,
    itemsize: int,
    *,
    carried: CarriedTensors | None = None,
    folder: Path | None = None,
) -> tuple[PlannedPreparation, ...]:
    """Foresee the preparations of a recipe in their order.

    Args:
        config: of the recipe's source.
        recipe: the recipe.
        itemsize: bytes of a stored float.
        carried: tensors of the source that the model does not compute with; preparations keep
            them, change their sizes, or leave them out.
        folder: of the source, see `Preparation.foresee`.

    Raises:
        ValueError: a preparation refuses the model.
    """
    planned: list[PlannedPreparation] = []
    carried = carried or CarriedTensors()
    size = sum(float_parts(config, itemsize, carried).values())
    for preparation in recipe.preparations:
        foreseen = preparation.foresee(config, folder)
        carried = preparation.foresee_carried(config, carried)
        config = foreseen.config
        after = sum(float_parts(config, itemsize, carried).values())
        planned.append(
            PlannedPreparation(preparation, config, foreseen.summary, size, after, carried)
        )
        size = after
    return tuple(planned)


def float_parts(config: ModelConfig, itemsize: int, carried: CarriedTensors) -> Mapping[str, int]:
    """Count the tensor bytes of a float checkpoint by part, see `bytes_by_part`."""
    sizes = [(name, prod(shape) * itemsize) for name, shape in parameter_shapes(config).items()]
    return bytes_by_part(config, [*sizes, *carried.bytes.items()])
