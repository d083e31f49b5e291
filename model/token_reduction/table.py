"""The reduction rules by name, and their forms in recipes, records and on the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...common.validation import parse, shown
from .divprune import DivPrune
from .duplicates import Duplicates
from .random_tokens import Random
from .rule import ReductionRule

METHODS: Mapping[str, type[ReductionRule]] = {
    rule.method: rule for rule in (Duplicates, DivPrune, Random)
}
"""Rules by the name of their method."""
RECIPE, NONE = "recipe", "none"
"""Choices besides a rule: that of the checkpoint, and all tokens."""
SCOPE = "applied by vlpress only; vLLM ignores it for images"
FORMS = f"METHOD or METHOD:KEY=VALUE,..., with METHOD one of {', '.join(METHODS)}"


def read_rule(data: object, source: str, at: str) -> ReductionRule:
    """Build a rule from the plain data of a recipe or record.

    Args:
        data: a table with `method` and the options of that method.
        source: file or section that messages begin with.
        at: path of the data in it.

    Raises:
        ValueError: the method or a key is unknown, or a value is out of range.
    """
    if not isinstance(data, Mapping) or "method" not in data:
        raise ValueError(
            f"{source}: {at} is {shown(data)}; allowed: a table with the key method, one of "
            f"{', '.join(METHODS)}"
        )
    options = {key: value for key, value in data.items() if key != "method"}
    kind = METHODS.get(data["method"]) if isinstance(data["method"], str) else None
    if kind is None:
        raise ValueError(
            f"{source}: {at}.method is {shown(data['method'])}; allowed: {', '.join(METHODS)}"
        )
    return parse(kind, options, source, at)


def parse_rule(text: str, option: str = "--reduce") -> ReductionRule:
    """Read a rule from its form on the command line.

    >>> parse_rule("divprune:keep=0.5")
    DivPrune(keep=0.5)

    Raises:
        ValueError: the text has another form, or see `read_rule`.
    """
    method, _, rest = text.partition(":")
    data: dict[str, Any] = {"method": method}
    for part in rest.split(",") if rest else ():
        key, mark, value = part.partition("=")
        try:
            data[key] = json.loads(value)
        except ValueError:
            data[key] = value
        if not mark:
            raise ValueError(f"{option} {text!r} has no value for {key!r}; allowed: {FORMS}")
    return read_rule(data, f"{option} {text}", "reduce")


def parse_choice(text: str) -> ReductionRule | None:
    """Read `NONE` or a rule; None: all tokens are kept.

    Raises:
        ValueError: see `parse_rule`.
    """
    return None if text == NONE else parse_rule(text)


def describe_rule(data: Mapping[str, Any]) -> str:
    """Describe a rule, given as plain data, and the engines that apply it.

    >>> describe_rule({"method": "duplicates", "threshold": 0.98})
    'visual tokens: duplicates:threshold=0.98 (applied by vlpress only; vLLM ignores it for images)'
    """
    return f"visual tokens: {read_rule(data, 'record', 'visual_tokens').text} ({SCOPE})"
