"""Decoder layers that stay: which ones may be dropped, the config and the names of the rest."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from ....model.config import ModelConfig
from ....model.config_edits import with_fields
from ....model.families import family_of
from ...steps.preparation import Foreseen
from ...steps.shrink import ShrinkStep

COUNT, TYPES = "num_hidden_layers", "layer_types"


def protected_layers(config: ModelConfig) -> int:
    """Return the number of first layers that cannot be dropped.

    DeepStack adds features of the tower after each of the first layers, and engines count them by
    the tower's `deepstack_visual_indexes`.
    """
    return len(config.vision.deepstack_visual_indexes)


def layer_period(config: ModelConfig) -> int:
    """Return the length of the pattern that the types of the layers repeat.

    1 if all layers are of one type; the number of layers if nothing is repeated.
    """
    types, count = config.text.layer_types, config.text.num_hidden_layers
    if not types:
        return 1
    return next(
        period
        for period in range(1, count + 1)
        if count % period == 0 and all(types[i] == types[i % period] for i in range(count))
    )


def check_layers(config: ModelConfig, step: ShrinkStep) -> None:
    """Check that the model allows to drop as many, or just these, layers.

    Raises:
        ValueError: it does not.
    """
    count, stays = config.text.num_hidden_layers, protected_layers(config)
    if step.layers is not None:
        _check_count(config, step.layers)
        return
    drops = step.drop_layers or ()
    if odd := [layer for layer in drops if not stays <= layer < count]:
        reason = f" ({stays} layers receive DeepStack features)" if stays else ""
        raise ValueError(
            f"shrink: drop_layers has {odd[0]}; allowed: {stays} to {count - 1}{reason}"
        )
    left = {config.text.layer_type(layer) for layer in range(count) if layer not in drops}
    if missing := sorted({config.text.layer_type(layer) for layer in range(count)} - left):
        raise ValueError(
            f"shrink: drop_layers leaves no layer of the type {missing[0]}; keep at least one"
        )


def foresee_layers(config: ModelConfig, step: ShrinkStep) -> Foreseen:
    """Return the config with fewer layers, and a line about them; see `Preparation.foresee`."""
    check_layers(config, step)
    before = config.text.num_hidden_layers
    if step.layers is not None:
        # Layers are dropped in whole runs of the pattern: what is left is its beginning.
        dropped: Collection[int] = range(step.layers, before)
        how = f"by {step.score}"
    else:
        dropped = sorted(step.drop_layers or ())
        how = f"without {', '.join(map(str, dropped))}"
    after = shallower_config(config, dropped)
    summary = f"decoder layers: {before} to {after.text.num_hidden_layers} ({how})"
    return Foreseen(after, summary)


def shallower_config(config: ModelConfig, dropped: Collection[int]) -> ModelConfig:
    """Return the config without some decoder layers; lists with an entry per layer shrink too."""
    left = [i for i in range(config.text.num_hidden_layers) if i not in dropped]
    fields: dict[str, object] = {COUNT: len(left)}
    text = config.raw.get("text_config", config.raw)
    types: Sequence[str] = text.get(TYPES) or config.text.layer_types
    if types:
        fields[TYPES] = [types[i] for i in left]
    return with_fields(config, "", fields)


def new_name(name: str, config: ModelConfig, dropped: Collection[int]) -> str | None:
    """Return the name of a tensor once its layer is renumbered; None if its layer is dropped.

    Args:
        name: canonical name in the source.
        config: of the source.
        dropped: numbers of the dropped layers.
    """
    pattern = re.escape(family_of(config).decoder.path).replace(r"\{\}", r"(\d+)")
    match = re.match(rf"{pattern}\.", name)
    if match is None:
        return name
    layer = int(match[1])
    if layer in dropped:
        return None
    renumbered = layer - sum(other < layer for other in dropped)
    return f"{name[: match.start(1)]}{renumbered}{name[match.end(1) :]}"


def _check_count(config: ModelConfig, layers: int) -> None:
    count, stays, period = (
        config.text.num_hidden_layers,
        protected_layers(config),
        layer_period(config),
    )
    first = -(-max(stays, 1) // period) * period
    if layers in range(first, count, period):
        return
    every = f", a multiple of {period} as the types of its layers repeat" if period > 1 else ""
    if first >= count:
        raise ValueError(
            f"shrink: layers is {layers}, but the types of the {count} layers repeat no pattern; "
            "name the layers to drop in drop_layers"
        )
    last = count - period
    raise ValueError(
        f"shrink: layers is {layers}; allowed for this model of {count} layers: {first} to "
        f"{last}{every}"
    )
