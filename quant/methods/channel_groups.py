"""Which bindings of a model a recipe's transforms scale, and which they leave alone, and why.

A transform targets layers whose inputs are to be scaled. That is possible where the family table
binds these layers to a source (a norm, or another layer); all readers of a source go together.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ...model.config import ModelConfig
from ...model.families import family_of
from ..plan.target_matching import match_names
from ..recipe.recipe import Recipe
from ..recipe.steps import Transform
from .channel_scaling import Binding, readers_of, source_of


@dataclass(frozen=True)
class PlannedTransform:
    """The fate of one binding under one transform."""

    transform: Transform
    block: str
    """Module path of the block."""
    binding: Binding
    reason: str
    """Why it is left alone; empty if it is not."""

    @property
    def source(self) -> str:
        """Name of the module whose output is scaled."""
        return f"{self.block}.{source_of(self.binding)}"

    @property
    def linears(self) -> tuple[str, ...]:
        """Names of the layers that read it."""
        return tuple(f"{self.block}.{reader}" for reader in readers_of(self.binding))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "method": self.transform.method,
            "source": self.source,
            "linears": list(self.linears),
            "left_alone": self.reason or None,
        }


def plan_transforms(
    config: ModelConfig, recipe: Recipe, quantized: Collection[str]
) -> tuple[PlannedTransform, ...]:
    """Find the bindings that each transform targets, in the order of the recipe.

    Args:
        config: the model.
        recipe: with its transforms.
        quantized: names of the layers that the recipe quantizes.

    Raises:
        ValueError: a pattern matches no layer whose input can be scaled, or the recipe quantizes
            none of the layers that a transform targets.
    """
    bindings: list[tuple[str, Binding]] = [
        (block, binding)
        for stage in family_of(config).stages
        for block in stage.blocks(config)
        for binding in stage.bindings
    ]
    names = [f"{block}.{reader}" for block, binding in bindings for reader in readers_of(binding)]
    kind = "layer whose input can be scaled"
    planned: list[PlannedTransform] = []
    for transform in recipe.transforms:
        targeted = match_names(transform.targets, names, f"{transform.method} target", kind)
        ignored = match_names(transform.ignore, names, f"{transform.method} ignore pattern", kind)
        found = []
        for block, binding in bindings:
            row = PlannedTransform(transform, block, binding, "")
            linears = set(row.linears)
            if not linears & targeted.keys() or linears & ignored.keys():
                continue
            if not linears & set(quantized):
                row = PlannedTransform(transform, block, binding, "no step quantizes its readers")
            found.append(row)
        if all(row.reason for row in found):
            raise ValueError(
                f"recipe {recipe.name}: {transform.method} has nothing to do: of the layers that "
                f"{', '.join(map(repr, transform.targets))} name, no step quantizes one that reads "
                "a scaled input; give it other targets, or quantize these layers"
            )
        planned += found
    return tuple(planned)
