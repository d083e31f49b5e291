"""Plan transforms: which channel groups SmoothQuant and AWQ scale, and why they skip the others.

A transform targets layers whose inputs are to be scaled. This is possible if the family table lists
a channel group with these layers as readers of a source (a norm, or another layer). All readers of
a source are scaled together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...model.config import ModelConfig
from ...model.families import family_of
from ..methods.channel_scaling import ChannelGroup, readers_of, source_of
from ..recipe.recipe import Recipe
from ..recipe.scheme import QuantScheme, Scheme
from ..steps.transform import Transform
from .target_matching import match_names


@dataclass(frozen=True)
class PlannedTransform:
    """One transform of one channel group."""

    transform: Transform
    block: str
    """Module path of the block."""
    channel_group: ChannelGroup
    reason: str
    """Why the group is skipped; empty if it is scaled."""

    @property
    def source(self) -> str:
        """Name of the module whose output is scaled."""
        return f"{self.block}.{source_of(self.channel_group)}"

    @property
    def linears(self) -> tuple[str, ...]:
        """Names of the layers that read the source."""
        return tuple(f"{self.block}.{reader}" for reader in readers_of(self.channel_group))

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON."""
        return {
            "method": self.transform.method,
            "source": self.source,
            "linears": list(self.linears),
            "left_alone": self.reason or None,
        }


def plan_transforms(
    config: ModelConfig, recipe: Recipe, schemes: Mapping[str, Scheme]
) -> tuple[PlannedTransform, ...]:
    """List the channel groups that each transform targets, in the order of the recipe.

    Args:
        config: of the model.
        recipe: the recipe.
        schemes: schemes of the layers that the recipe quantizes, by name.

    Raises:
        ValueError: a pattern matches no layer whose input can be scaled, the recipe quantizes none
            of the layers that a transform targets, they are not rounded to integers and it compares
            candidates by that, or they are experts.
    """
    experts = {spec.name for spec in family_of(config).linears(config) if spec.expert is not None}
    groups: list[tuple[str, ChannelGroup]] = [
        (block, group)
        for stage in family_of(config).stages
        for index, block in enumerate(stage.blocks(config))
        for group in stage.bindings(config, index)
    ]
    names = [f"{block}.{reader}" for block, group in groups for reader in readers_of(group)]
    kind = "layer whose input can be scaled"
    planned: list[PlannedTransform] = []
    for transform in recipe.transforms:
        targeted = match_names(transform.targets, names, f"{transform.method} target", kind)
        ignored = match_names(transform.ignore, names, f"{transform.method} ignore pattern", kind)
        rows = []
        for block, group in groups:
            row = PlannedTransform(transform, block, group, "")
            linears = set(row.linears)
            if not linears & targeted.keys() or linears & ignored.keys():
                continue
            if of_experts := sorted(linears & experts):
                raise ValueError(
                    f"recipe {recipe.name}: {transform.method} targets {of_experts[0]}, an expert, "
                    "and scaling the inputs of experts is not implemented; ignore "
                    "'*.mlp.experts.*' there"
                )
            readers = [schemes[name] for name in row.linears if name in schemes]
            odd = [scheme for scheme in readers if scheme.kind != QuantScheme.kind]
            if odd and transform.foresees_rounding:
                raise ValueError(
                    f"recipe {recipe.name}: {transform.method} targets {row.linears[0]}, which "
                    f"becomes {odd[0].label}; allowed: {QuantScheme.kind} weights, whose rounding "
                    "it can foresee; ignore the layer there, or take smoothquant with a fixed alpha"
                )
            if not readers:
                row = PlannedTransform(transform, block, group, "no step quantizes its readers")
            rows.append(row)
        if all(row.reason for row in rows):
            raise ValueError(
                f"recipe {recipe.name}: {transform.method} has nothing to do: of the layers that "
                f"{', '.join(map(repr, transform.targets))} match, no step quantizes one that "
                "reads a scaled input; give it other targets, or quantize these layers"
            )
        planned += rows
    return tuple(planned)
