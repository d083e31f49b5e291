"""Targets that name a part of the model, whose layers every family names differently."""

from dataclasses import replace
from typing import TypeVar

from ...model.config import ModelConfig
from ...model.families import EMBEDDING, Stage, family_of
from ..recipe.recipe import Recipe
from ..steps.step import Step
from ..steps.transform import Transform

_Pass = TypeVar("_Pass", Step, Transform)


def spell_out_parts(recipe: Recipe, config: ModelConfig) -> Recipe:
    """Replace parts of the model (`BYTE_PARTS` but the rest) among targets by patterns of names.

    A part becomes one pattern for each of its stages, in their order; of a transform, for those
    with inputs that can be scaled. Checkpoints record the result. Other patterns are kept, so that
    a second call changes nothing.

    Args:
        recipe: the recipe.
        config: of the model; the table of its family has the names.
    """

    def spelled(patterns: tuple[str, ...], *, scaled: bool) -> tuple[str, ...]:
        named = (_patterns(pattern, config, scaled) or [pattern] for pattern in patterns)
        return tuple(dict.fromkeys(name for names in named for name in names))

    def spell(step: _Pass) -> _Pass:
        scaled = isinstance(step, Transform)
        return replace(
            step,
            targets=spelled(step.targets, scaled=scaled),
            ignore=spelled(step.ignore, scaled=scaled),
        )

    steps, transforms = tuple(map(spell, recipe.steps)), tuple(map(spell, recipe.transforms))
    return replace(recipe, steps=steps, transforms=transforms)


def _patterns(part: str, config: ModelConfig, scaled: bool) -> list[str]:
    """Patterns of the stages of a part; none for the name of a layer."""
    if part == "embedding" and not scaled:
        return [EMBEDDING]
    if part == "mtp" and not scaled:
        parts = family_of(config).carried_parts(config).items()
        return [f"{prefix}*" for prefix, of in parts if of == part]
    return [
        _pattern(stage)
        for stage in family_of(config).stages
        if stage.part == part
        and (part == "head" or stage.count(config))
        and (stage.norms or stage.pairs or not scaled)
    ]


def _pattern(stage: Stage) -> str:
    if stage.part == "head":  # it is a linear layer itself
        return stage.path
    return f"{stage.path.removesuffix('.{}')}.*"
