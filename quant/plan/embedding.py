"""Checks of the step that quantizes the token embedding."""

from __future__ import annotations

from ...model.config import ModelConfig
from ...model.families import EMBEDDING, family_of
from ..recipe.recipe import Recipe
from ..recipe.scheme import QuantScheme
from ..steps.step import Step
from .target_matching import check_groups


def check_embedding(config: ModelConfig, recipe: Recipe, step: Step | None) -> None:
    """Check the step that quantizes the token embedding.

    Args:
        config: of the model, untied if the recipe says so.
        recipe: the recipe, for messages.
        step: that targets the embedding; None if no step does.

    Raises:
        ValueError: the embedding is shared with the head, the step does not round to integers,
            quantizes activations, or its groups do not divide the rows.
    """
    if step is None:
        return
    where = f"recipe {recipe.name}: {EMBEDDING}"
    if config.text.tie_word_embeddings:
        raise ValueError(
            f"{where} is shared with the output head (tie_word_embeddings), and engines only look "
            "rows up in a quantized embedding; add `tie = false` to the recipe, which writes the "
            "head apart"
        )
    is_plain = isinstance(step.scheme, QuantScheme) and step.scheme.activations == "none"
    if not step.rounds or step.uses_activations or not is_plain:
        raise ValueError(
            f"{where} has method {step.label}, but its rows are looked up, so there is no input to "
            "calibrate with; allowed: method rtn with bits, activations none, and score magnitude "
            "with keep"
        )
    check_groups([family_of(config).embedding(config)], step.scheme)
