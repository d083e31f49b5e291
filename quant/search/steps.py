"""Steps of a searched recipe, and the recipe file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tomli_w

from ...model.config import ModelConfig
from ...model.families import EMBEDDING, Stage, family_of
from ..recipe.mask import MaskRule
from ..recipe.scheme import QuantScheme, Scheme
from ..steps.gptq import GPTQStep
from ..steps.rtn import RTNStep
from ..steps.step import GridStep, Step
from .space import Choice, Group

STEPS: Mapping[str, type[Step]] = {
    "decoder": GPTQStep,
    "tower": GPTQStep,
    "embedding": RTNStep,
    "head": RTNStep,
}
"""Methods by part, as in the presets."""


def recipe_data(
    name: str,
    config: ModelConfig,
    groups: Sequence[Group],
    chosen: Sequence[Choice],
    *,
    samples: int,
    seed: int,
    tp: int,
) -> dict[str, Any]:
    """Build the plain data of a recipe, one step for each scheme and mask of each part.

    Args:
        name: of the recipe.
        config: with a head of its own.
        groups: of the search space.
        chosen: the choice of each group.
        samples: number of calibration samples.
        seed: of their draw.
        tp: tensor-parallel size at serving time.

    Raises:
        ValueError: everything stays in float.
    """
    of_schemes: dict[tuple[str, Scheme, MaskRule | None], list[str]] = {}
    for group, choice in zip(groups, chosen, strict=True):
        for spec, scheme in zip(group.layers, choice.schemes, strict=True):
            if scheme is not None:
                of_schemes.setdefault((spec.part, scheme, choice.mask), []).append(spec.name)
    if not of_schemes:
        raise ValueError("the budget leaves everything in float; there is nothing to quantize")
    return {
        "name": name,
        "tp": tp,
        **({"tie": False} if any(choice.unties for choice in chosen) else {}),
        "calibration": {"samples": samples, "seed": seed},
        "step": [
            {
                "method": STEPS[part].method,
                "bits": scheme.bits,
                "group_size": scheme.group_size,
                **({} if mask is None else {"keep": mask.keep, "score": mask.score}),
                "targets": list(patterns(config, names)),
            }
            for (part, scheme, mask), names in of_schemes.items()
        ],
    }


def patterns(config: ModelConfig, names: Sequence[str]) -> Iterator[str]:
    """Yield patterns that match these layers and no others.

    Args:
        config: of the model.
        names: of layers; of an expert's layer those of all experts.
    """
    wanted = set(names)
    if EMBEDDING in wanted:
        yield EMBEDDING
    for stage in family_of(config).stages:
        for linear in stage.linears:
            member = linear.names(config)[0]
            blocks = [
                index
                for index, block in enumerate(stage.blocks(config))
                if (f"{block}.{member}" if member else block) in wanted
            ]
            if blocks:
                owners = sum(
                    member in stage.members(config, index) for index in range(stage.count(config))
                )
                yield _pattern(stage, linear.name, blocks, owners)


def _pattern(stage: Stage, linear: str, blocks: Sequence[int], count: int) -> str:
    path = f"{stage.path}.{linear}" if linear else stage.path
    if "{}" not in path:
        return path
    if len(blocks) == count:
        return path.replace("{}", "*")
    block, _, rest = path.partition("{}")
    numbers = "|".join(map(str, blocks))
    inner = re.escape(rest).replace(re.escape("{}"), r"\d+")
    return f"re:{re.escape(block)}({numbers}){inner}"


def format_recipe(data: Mapping[str, Any], comments: Sequence[str]) -> str:
    """Write a recipe as TOML.

    Args:
        data: from `recipe_data`.
        comments: lines of its head.
    """
    lines = [f"# {line}".rstrip() for line in comments]
    return "\n".join([*lines, "", tomli_w.dumps(data)])


def make_step(part: str, scheme: Scheme, errors: str, mask: MaskRule | None = None) -> Step:
    """Return the step whose error is measured for a layer.

    Rounding has no score "sparsegpt", which a solver computes; its masks are by "wanda" then.

    Args:
        part: of the model.
        scheme: of the layer.
        errors: "gptq" for the recipe's own method, or "rtn" for rounding.
        mask: of the layer.
    """
    assert isinstance(scheme, QuantScheme)
    kind = RTNStep if errors == "rtn" else STEPS[part]
    if mask is None:
        return kind(scheme=scheme)
    assert issubclass(kind, GridStep)
    score = mask.score if mask.score in kind.scores else kind.scores[-1]
    return kind(scheme=scheme, keep=mask.keep, score=score)
