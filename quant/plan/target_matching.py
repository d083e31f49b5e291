"""Match the steps of a recipe to layers, and check that each step's scheme fits its layers."""

import difflib
import re
from collections.abc import Sequence

from ...model.checkpoint import canonical_name
from ...model.families import EMBEDDING, LinearSpec
from ..recipe.recipe import Recipe, pattern_matches
from ..recipe.scheme import Scheme
from ..steps.step import Step

LINEAR = "linear layer"
GROUP_SIZES = (128, 64, 32)
"""Group sizes that the kernels of engines support; larger groups have less overhead."""


def claim_layers(
    specs: Sequence[LinearSpec], recipe: Recipe, carried: Sequence[LinearSpec] = ()
) -> dict[str, tuple[Step | None, str]]:
    """Find the step that quantizes each layer, and the token embedding if there is one.

    Args:
        specs: all linear layers of the model.
        recipe: the recipe.
        carried: layers of the checkpoint that the model does not compute with.

    Returns:
        By layer name the step and an empty string, or None and the reason why no step claims it.
        The token embedding is included only if a step claims it.

    Raises:
        ValueError: a pattern matches nothing (the message lists near misses), or two steps claim
            a layer.
    """
    names, others = [spec.name for spec in specs], [spec.name for spec in carried]
    claims: dict[str, tuple[Step | None, str]] = {
        spec.name: (None, f"no step targets it ({spec.stage})") for spec in (*specs, *carried)
    }
    for step in recipe.steps:
        targeted = match_names(step.targets, names, "target", carried=others)
        ignored = match_names(step.ignore, names, "ignore pattern", carried=others)
        for name in targeted:
            claimed_by = claims.setdefault(name, (None, ""))[0]
            if name in ignored:
                # An earlier step may have claimed it: ignoring it here settles which one does.
                if claimed_by is None:
                    claims[name] = (None, f"the recipe ignores {ignored[name]!r}")
            elif claimed_by is not None:
                raise ValueError(
                    f"recipe {recipe.name}: {name} is targeted by two steps; ignore it in one"
                )
            else:
                claims[name] = (step, "")
    if EMBEDDING in claims and claims[EMBEDDING][0] is None:
        del claims[EMBEDDING]
    return claims


def match_names(
    patterns: Sequence[str],
    names: Sequence[str],
    what: str,
    kind: str = LINEAR,
    *,
    carried: Sequence[str] = (),
) -> dict[str, str]:
    """Match names against patterns.

    The token embedding and carried layers are named by patterns that match no linear layer of the
    model: `*` stands for all layers that are multiplied.

    Args:
        patterns: see `pattern_matches`.
        names: full names.
        what: role of the patterns, for messages: "target", "ignore pattern".
        kind: kind of the named things, for messages.
        carried: names of layers that the model does not compute with.

    Returns:
        The names that match, each with the first pattern that matches it.

    Raises:
        ValueError: a pattern matches no name.
    """
    first_match: dict[str, str] = {}
    for pattern in patterns:
        plain = pattern if pattern.startswith("re:") else canonical_name(pattern)
        hits = [name for name in names if pattern_matches(plain, name)]
        if not hits and kind == LINEAR and pattern_matches(plain, EMBEDDING):
            hits = [EMBEDDING]
        hits = hits or [name for name in carried if pattern_matches(plain, name)]
        if not hits and kind == LINEAR and pattern_matches(plain, "lm_head"):
            raise ValueError(
                f"recipe: {what} {pattern!r}: the output head of this model shares its weight with "
                "the token embedding (tie_word_embeddings); add `tie = false` to the recipe, which "
                "writes the head apart, or remove lm_head"
            )
        if not hits and kind == LINEAR and plain.startswith("mtp"):
            raise ValueError(
                f"recipe: {what} {pattern!r}: no tensors of a module for multi-token prediction "
                "(mtp.*) are known; allowed: a checkpoint that holds them, quantized from its "
                "folder (quantize, not quantize_)"
            )
        if not hits:
            near = ", ".join(near_misses(plain, names))
            raise ValueError(f"recipe: {what} {pattern!r} matches no {kind}; near are {near}")
        for name in hits:
            first_match.setdefault(name, pattern)
    return first_match


def near_misses(pattern: str, names: Sequence[str]) -> list[str]:
    """Suggest up to three names similar to a pattern.

    Block numbers become a star if the pattern has none: it is then about all blocks.
    """
    if not re.search(r"\.\d+(\.|$)", pattern):
        names = [re.sub(r"\.\d+\.", ".*.", name) for name in names]
    names = list(dict.fromkeys(names))
    text = pattern.removeprefix("re:").replace("\\", "")
    near = difflib.get_close_matches(text, names, n=3, cutoff=0.5)
    return near or [names[0], names[-1]]


def check_groups(specs: Sequence[LinearSpec], scheme: Scheme, tp: int = 1) -> None:
    """Refuse a group size that does not divide the input width of each of these layers.

    Args:
        specs: layers of one step, padded where they will be.
        scheme: of the step.
        tp: tensor-parallel size at serving time. A layer whose input is split over devices needs
            whole groups on each device.

    Raises:
        ValueError: a width does not divide; the message proposes a group size that fits.
    """
    for spec in specs:
        devices = tp if spec.input_split else 1
        if spec.in_features % devices:
            raise ValueError(
                f"{spec.name}: in_features {spec.in_features} does not split over {tp} devices; "
                "choose a tp that divides it"
            )
        width = spec.in_features // devices
        if width % scheme.width(width):
            each = f" on each of {tp} devices" if devices > 1 else ""
            raise ValueError(
                f"{spec.name}: in_features {width}{each} does not divide into groups of "
                f"{scheme.group_size}; {fitting_group(specs, tp)} fits all layers of this step"
            )


def fitting_group(specs: Sequence[LinearSpec], tp: int = 1) -> str:
    """Describe the largest usual group size that divides the widths of all these layers."""
    for size in GROUP_SIZES:
        if all(spec.in_features % (size * (tp if spec.input_split else 1)) == 0 for spec in specs):
            return f"group_size {size}"
    return "group_size -1 (one scale per output row)"
