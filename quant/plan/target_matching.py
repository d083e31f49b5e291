"""Which step of a recipe takes which layer, by the patterns of its targets and ignore lists."""

import difflib
import re
from collections.abc import Sequence

from ...model.checkpoint import canonical_name
from ...model.families import LinearSpec
from ..recipe.recipe import Recipe, pattern_matches
from ..recipe.steps import Step

LINEAR = "linear layer"


def claim_layers(specs: Sequence[LinearSpec], recipe: Recipe) -> dict[str, tuple[Step | None, str]]:
    """For each layer the step that takes it, or None and why none does.

    Raises:
        ValueError: a pattern matches nothing (the message lists near misses), or two steps claim
            a layer.
    """
    names = [spec.name for spec in specs]
    claims: dict[str, tuple[Step | None, str]] = {
        spec.name: (None, f"no step targets it ({spec.stage})") for spec in specs
    }
    for step in recipe.steps:
        targeted = match_names(step.targets, names, "target")
        ignored = match_names(step.ignore, names, "ignore pattern")
        for name in targeted:
            holder = claims[name][0]
            if name in ignored:
                if holder is None:
                    claims[name] = (None, f"the recipe ignores {ignored[name]!r}")
            elif holder is not None:
                raise ValueError(
                    f"recipe {recipe.name}: {name} is targeted by two steps; ignore it in one"
                )
            else:
                claims[name] = (step, "")
    return claims


def match_names(
    patterns: Sequence[str], names: Sequence[str], what: str, kind: str = LINEAR
) -> dict[str, str]:
    """Names that match, each with the first pattern that does.

    Args:
        patterns: see `pattern_matches`.
        names: to match, in full.
        what: the patterns are, for messages.
        kind: of thing that the names stand for, for messages.

    Raises:
        ValueError: a pattern matches no name.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        plain = pattern if pattern.startswith("re:") else canonical_name(pattern)
        hits = [name for name in names if pattern_matches(plain, name)]
        if not hits and kind == LINEAR and pattern_matches(plain, "lm_head"):
            raise ValueError(
                f"recipe: {what} {pattern!r}: the output head of this model shares its weight with "
                "the token embedding (tie_word_embeddings), which stays as it is; remove lm_head"
            )
        if not hits:
            near = ", ".join(near_misses(plain, names))
            raise ValueError(f"recipe: {what} {pattern!r} matches no {kind}; near are {near}")
        for name in hits:
            found.setdefault(name, pattern)
    return found


def near_misses(pattern: str, names: Sequence[str]) -> list[str]:
    """Up to three names like a pattern, with a star for the block if it names no block."""
    if not re.search(r"\.\d+(\.|$)", pattern):
        names = [re.sub(r"\.\d+\.", ".*.", name) for name in names]
    names = list(dict.fromkeys(names))
    text = pattern.removeprefix("re:").replace("\\", "")
    near = difflib.get_close_matches(text, names, n=3, cutoff=0.5)
    return near or [names[0], names[-1]]
