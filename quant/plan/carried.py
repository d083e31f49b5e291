"""Rows of carried layers (the module for multi-token prediction), and checks of their step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...model.carried import CarriedTensors
from ...model.config import ModelConfig
from ...model.families import LinearSpec, family_of
from ..driver.padding import Padding
from ..recipe.recipe import Recipe
from ..steps.step import Step


def carried_specs(config: ModelConfig, carried: CarriedTensors) -> list[LinearSpec]:
    """List the layers of the family's table that a checkpoint holds."""
    layers = set(carried.layers)
    return [spec for spec in family_of(config).carried_linears(config) if spec.name in layers]


def carried_kept(config: ModelConfig, carried: CarriedTensors) -> list[tuple[LinearSpec, str]]:
    """List those that are never quantized, each with the reason."""
    layers = set(carried.layers)
    return [each for each in family_of(config).carried_kept(config) if each[0].name in layers]


def check_carried(
    recipe: Recipe,
    specs: Sequence[LinearSpec],
    claims: Mapping[str, tuple[Step | None, str]],
    padding: Sequence[Padding],
) -> None:
    """Check the steps that quantize carried layers.

    Args:
        recipe: the recipe, for messages.
        specs: the carried layers.
        claims: steps by layer, see `claim_layers`.
        padding: of widths of the model.

    Raises:
        ValueError: a step does not round, or quantizes activations; or config.json would get a
            width that carried layers do not have.
    """
    for spec in specs:
        step = claims[spec.name][0]
        if step is None:
            continue
        if not step.rounds or step.uses_activations or step.scheme.activations != "none":
            raise ValueError(
                f"recipe {recipe.name}: {spec.name} has method {step.label}, but no calibration "
                "sample passes the module for multi-token prediction; allowed: method rtn, "
                "activations none, and score magnitude with keep"
            )
    for each in padding:
        section, field = each.width.config_field
        if specs and not section:
            raise ValueError(
                f"recipe {recipe.name}: {field} {each.before} would be padded to {each.after}, and "
                f"{specs[0].name} has the same width; choose groups and a tp that need no padding"
            )
