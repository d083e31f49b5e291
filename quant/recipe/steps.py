"""Read the steps of a recipe: passes that quantize layers, and what comes before them."""

from collections.abc import Mapping
from typing import Any

from ...common.validation import parse, shown
from ..steps.preparation import Preparation
from ..steps.step import Step, field_names
from ..steps.table import METHODS, PREPARATIONS, TRANSFORMS, methods_with
from ..steps.transform import Transform


def read_step(data: Any, at: str) -> Step | Transform | Preparation:
    """Build a step of any kind from plain data.

    Args:
        data: one [[step]] table of a recipe.
        at: its path in the recipe, for messages.

    Raises:
        ValueError: a key is unknown, missing or an option of another method, or a value is out of
            range.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"recipe: {at} is {shown(data)}; allowed: a table, written [[step]]")
    method = data.get("method")
    values = {key: value for key, value in data.items() if key != "method"}
    before: dict[str, type[Transform] | type[Preparation]] = {**TRANSFORMS, **PREPARATIONS}
    if isinstance(method, str) and method in before:
        kind = before[method]
        return parse(kind, values, "recipe", at, keys=("method", *field_names(kind)))
    if not isinstance(method, str) or method not in METHODS:
        problem = f"is {shown(method)}" if "method" in data else "is missing"
        allowed = ", ".join((*METHODS, *before))
        raise ValueError(f"recipe: {at}.method {problem}; allowed: {allowed}")
    step = METHODS[method]
    scheme_type = step.scheme_of(values.keys())
    of_scheme = field_names(scheme_type)
    known = [name for name in (*field_names(step), *of_scheme) if name != "scheme"]
    for key in values:
        others = [] if key in (*known, "scheme") else methods_with(key)
        if others:
            raise ValueError(
                f"recipe: {at}.{key} is {shown(values[key])} with method {method}; allowed: with "
                f"method {', '.join(others)} only; remove it or change the method"
            )
    if "scheme" in values:
        allowed = ", ".join(sorted(("method", *known)))
        raise ValueError(f"recipe: {at}: unknown key 'scheme'; allowed: {allowed}")
    # A table holds the fields of the scheme next to those of the step.
    grid = {key: values.pop(key) for key in of_scheme if key in values}
    values["scheme"] = parse(scheme_type, grid, "recipe", at)
    return parse(step, values, "recipe", at, keys=("method", *known))
