"""Steps of a recipe: passes that quantize layers, and transforms of the float weights before them.

The annotation of each field states its range, which is checked on construction and nowhere else.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, StrictBool

from ...common.validation import Allowed, Integer, parse, shown, validated
from .presets import DECODER, SEARCH
from .ranges import BlockSize, DampPercent, Share
from .scheme import QuantScheme

Method = Literal["gptq", "gptaq", "rtn"]
Patterns = Annotated[tuple[str, ...], Allowed("a list of layer patterns")]
Targets = Annotated[
    tuple[str, ...], Field(min_length=1), Allowed("a list of layer patterns, at least one")
]
Alpha = Annotated[Share | Literal["search"], Allowed(f"a number from 0 to 1, {SEARCH!r}")]


@validated
class Step:
    """One quantization pass over some of the layers."""

    method: Method
    scheme: QuantScheme
    targets: Targets = (DECODER,)
    ignore: Patterns = ()
    damp_percent: DampPercent = 0.01
    """Fraction of the Hessian's mean diagonal added to it; gptq and gptaq only."""
    act_order: StrictBool = True
    """Solve columns in order of decreasing activation energy; gptq and gptaq only."""
    block_size: BlockSize = 128
    """Columns per lazy update; gptq and gptaq only."""
    scale_search: StrictBool = True
    """Shrink scales by up to a fifth where that reduces the error; gptq and gptaq only."""
    strength: Share = 0.5
    """Fraction of the correction towards the float model's outputs, 0 to 1; gptaq only, and an
    error in a file elsewhere. See `gptaq.py`."""

    @property
    def solves(self) -> bool:
        """Whether the integers are solved for instead of rounded."""
        return self.method != "rtn"

    @property
    def asymmetric_calibration(self) -> bool:
        """Whether the activations of the float model are used too, see `gptaq.py`."""
        return self.method == "gptaq"

    @property
    def uses_activations(self) -> bool:
        """Whether activations of calibration samples are used."""
        return self.solves or self.scheme.activations == "static"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, which `read_step` reads."""
        values = _plain(self)
        grid = values.pop("scheme").to_dict()
        first = {key: values.pop(key) for key in ("method", "targets", "ignore")}
        if not self.asymmetric_calibration:
            del values["strength"]
        return {**first, **grid, **values}


@validated
class SmoothQuantStep:
    """Migration of activation outliers into the weights, see `smoothquant.py`."""

    targets: Targets = (DECODER,)
    """Layers whose inputs are scaled; all layers that share the input count as one."""
    ignore: Patterns = ()
    alpha: Alpha = 0.5
    """Migration strength, 0 to 1; "search" tries several in every block."""
    method: ClassVar[str] = "smoothquant"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, which `read_step` reads."""
        return {"method": self.method, **_plain(self)}


@validated
class AWQStep:
    """Activation-aware scaling of weight columns, see `awq.py`."""

    targets: Targets = (DECODER,)
    """Layers whose inputs are scaled; all layers that share the input count as one."""
    ignore: Patterns = ()
    points: Annotated[int, Integer(1)] = 20
    """Points of the grid on which the ratio is searched."""
    clip: StrictBool = True
    """Search the scales of targeted layers that are rounded; gptq has its own `scale_search`."""
    method: ClassVar[str] = "awq"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, which `read_step` reads."""
        return {"method": self.method, **_plain(self)}


Transform = SmoothQuantStep | AWQStep
TRANSFORMS: dict[str, type[SmoothQuantStep] | type[AWQStep]] = {
    kind.method: kind for kind in (SmoothQuantStep, AWQStep)
}


def read_step(data: Any, at: str) -> Step | Transform:
    """Build a step of either kind from plain data.

    Args:
        data: one [[step]] table of a recipe.
        at: its path in the recipe, for messages.

    Raises:
        ValueError: a key is unknown or missing, or a value is out of range.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"recipe: {at} is {shown(data)}; allowed: a table, written [[step]]")
    method = data.get("method")
    if isinstance(method, str) and method in TRANSFORMS:
        kind = TRANSFORMS[method]
        values = {key: value for key, value in data.items() if key != "method"}
        return parse(kind, values, "recipe", at, keys=("method", *_names(kind)))
    if method not in get_args(Method):
        problem = f"is {shown(method)}" if "method" in data else "is missing"
        allowed = ", ".join((*get_args(Method), *TRANSFORMS))
        raise ValueError(f"recipe: {at}.method {problem}; allowed: {allowed}")
    if "strength" in data and method != "gptaq":
        raise ValueError(
            f"recipe: {at}.strength is {shown(data['strength'])} with method {method}; allowed: "
            "with method gptaq only; remove it or change the method"
        )
    # A table holds the fields of the scheme next to those of the step.
    grid = {key: data[key] for key in _names(QuantScheme) if key in data}
    values = {key: value for key, value in data.items() if key not in grid}
    values["scheme"] = parse(QuantScheme, grid, "recipe", at)
    keys = [name for name in (*_names(Step), *_names(QuantScheme)) if name != "scheme"]
    return parse(Step, values, "recipe", at, keys=keys)


def _plain(step: Step | Transform) -> dict[str, Any]:
    """Return the fields by name, with lists for tuples."""
    values = {name: getattr(step, name) for name in _names(step)}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def _names(kind: Any) -> list[str]:
    return [f.name for f in fields(kind)]
