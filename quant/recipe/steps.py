"""The steps of a recipe: two kinds that quantize layers, two that transform weights beforehand."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args

from .scheme import QuantScheme

Method = Literal["gptq", "gptaq", "rtn"]
SEARCH = "search"
DECODER = "model.layers.*"
"""Targets of a step that names none."""


@dataclass(frozen=True)
class Step:
    """One pass over some of the layers."""

    method: Method
    scheme: QuantScheme
    targets: tuple[str, ...] = (DECODER,)
    ignore: tuple[str, ...] = ()
    damp_percent: float = 0.01
    """Fraction of the Hessian's mean diagonal added to it; gptq and gptaq only."""
    act_order: bool = True
    """Solve columns by falling activation energy; gptq and gptaq only."""
    block_size: int = 128
    """Columns per lazy update; gptq and gptaq only."""
    scale_search: bool = True
    """Shrink scales by up to a fifth where rounding gains; gptq and gptaq only."""
    strength: float = 0.5
    """How far gptaq moves its target towards what the float model gives, 0 to 1; gptaq only, and
    an error elsewhere. See `asymmetric.py`."""

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(
                f"recipe: method is {self.method!r}; allowed are {', '.join(get_args(Method))}"
            )
        _check_targets(self.targets)
        if not 0 < self.damp_percent <= 1:
            raise ValueError(
                f"recipe: damp_percent is {self.damp_percent}; it is a fraction above 0, at most 1"
            )
        if self.block_size < 1:
            raise ValueError(f"recipe: block_size is {self.block_size}; it must be at least 1")
        if not 0 <= self.strength <= 1:
            raise ValueError(f"recipe: strength is {self.strength}; it is a share from 0 to 1")

    @property
    def solves(self) -> bool:
        """Whether it solves for the integers instead of rounding."""
        return self.method != "rtn"

    @property
    def asymmetric(self) -> bool:
        """Whether it looks at the activations of the float model too."""
        return self.method == "gptaq"

    @property
    def looks(self) -> bool:
        """Whether it looks at activations of calibration samples."""
        return self.solves or self.scheme.activations == "static"

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `read_step` takes it back."""
        values = _plain(self)
        grid = values.pop("scheme").to_dict()
        first = {key: values.pop(key) for key in ("method", "targets", "ignore")}
        if not self.asymmetric:
            del values["strength"]
        return {**first, **grid, **values}


@dataclass(frozen=True)
class SmoothQuantStep:
    """Even out the activations that some layers read, see `smoothquant.py`."""

    targets: tuple[str, ...] = (DECODER,)
    """Layers whose inputs are scaled; all layers that share the input count as one."""
    ignore: tuple[str, ...] = ()
    alpha: float | str = 0.5
    """0 to 1, how much moves into the weights; "search" tries several in every block."""
    method: ClassVar[str] = "smoothquant"

    def __post_init__(self) -> None:
        _check_targets(self.targets)
        if isinstance(self.alpha, str):
            valid = self.alpha == SEARCH
        else:
            valid = type(self.alpha) in (int, float) and 0 <= self.alpha <= 1
        if not valid:
            raise ValueError(f"recipe: alpha is {self.alpha!r}; allowed are 0 to 1 and {SEARCH!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `read_transform` takes it back."""
        return {"method": self.method, **_plain(self)}


@dataclass(frozen=True)
class AWQStep:
    """Scale columns by what their activations weigh, see `awq.py`."""

    targets: tuple[str, ...] = (DECODER,)
    """Layers whose inputs are scaled; all layers that share the input count as one."""
    ignore: tuple[str, ...] = ()
    points: int = 20
    """Steps of the grid on which the ratio is searched."""
    clip: bool = True
    """Search the scales of targeted layers that are rounded; gptq has its own `scale_search`."""
    method: ClassVar[str] = "awq"

    def __post_init__(self) -> None:
        _check_targets(self.targets)
        if self.points < 1:
            raise ValueError(f"recipe: points is {self.points}; the grid needs at least 1")

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `read_transform` takes it back."""
        return {"method": self.method, **_plain(self)}


Transform = SmoothQuantStep | AWQStep
TRANSFORMS: tuple[type[SmoothQuantStep] | type[AWQStep], ...] = (SmoothQuantStep, AWQStep)


def count_transforms(steps: list[Any]) -> int:
    """How many steps at the start are transforms.

    Raises:
        ValueError: one stands behind a quantizing step, or there is no quantizing step.
    """
    methods = [step.get("method") if isinstance(step, Mapping) else None for step in steps]
    known = [kind.method for kind in TRANSFORMS]
    first = next((i for i, method in enumerate(methods) if method not in known), len(methods))
    for method in methods[first:]:
        if method in known:
            raise ValueError(
                f"recipe: {method} stands behind {methods[first]}, but changes the weights that "
                "it quantizes; move it to the front"
            )
    if first == len(steps):
        raise ValueError(
            f"recipe: {methods[0]} alone quantizes nothing; add a step with method "
            f"{' or '.join(get_args(Method))}"
        )
    return first


def read_transform(data: Mapping[str, Any]) -> Transform:
    """A transform from plain data.

    Raises:
        ValueError: a key is unknown or a value out of range.
    """
    kind = next(kind for kind in TRANSFORMS if kind.method == data["method"])
    own = {f.name for f in fields(kind)}
    known_keys(data, own | {"method"}, f"in [[step]] with method {kind.method}")
    values = _with_patterns({key: value for key, value in data.items() if key in own})
    # alpha may be of two types and checks itself.
    check_types(kind(), {key: value for key, value in values.items() if key != "alpha"})
    return kind(**values)


def _plain(step: Step | Transform) -> dict[str, Any]:
    """The fields by name, with lists for tuples."""
    values = {f.name: getattr(step, f.name) for f in fields(step)}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def _with_patterns(values: dict[str, Any]) -> dict[str, Any]:
    """Turn the lists of patterns into tuples."""
    found = dict(values)
    for key in ("targets", "ignore"):
        if key in values:
            patterns = values[key]
            if not isinstance(patterns, list) or not all(isinstance(p, str) for p in patterns):
                raise ValueError(f"recipe: {key} is {patterns!r}; it must be a list of patterns")
            found[key] = tuple(patterns)
    return found


def _check_targets(targets: tuple[str, ...]) -> None:
    if not targets:
        raise ValueError("recipe: a step has no targets; name at least one layer pattern")


def read_step(data: Any) -> Step:
    """A quantizing step from plain data.

    Raises:
        ValueError: a key is unknown or missing, or a value out of range.
    """
    grid = {f.name for f in fields(QuantScheme)}
    other = {f.name for f in fields(Step)} - {"scheme"}
    if not isinstance(data, Mapping):
        raise ValueError("recipe: step must be a list of tables, written [[step]]")
    methods = (*get_args(Method), *(kind.method for kind in TRANSFORMS))
    if "method" in data and data["method"] not in methods:
        raise ValueError(f"recipe: method is {data['method']!r}; allowed are {', '.join(methods)}")
    known_keys(data, grid | other, "in [[step]]")
    for key in ("method", "bits"):
        if key not in data:
            raise ValueError(f"recipe: a step has no {key!r}; it is required")
    if "strength" in data and data["method"] != "gptaq":
        raise ValueError(
            f"recipe: strength stands in a step with method {data['method']}, which has no use for "
            "it; remove it, or take method gptaq"
        )
    values = _with_patterns({key: value for key, value in data.items() if key in other})
    try:
        scheme = QuantScheme(**{key: value for key, value in data.items() if key in grid})
    except ValueError as error:
        raise ValueError(f"recipe: {error}") from None
    check_types(Step("rtn", scheme), values)
    return Step(scheme=scheme, **values)


def known_keys(data: Any, allowed: set[str], where: str) -> None:
    """Refuse anything but a table of these keys.

    Raises:
        ValueError: it is no table, or has another key.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"recipe: expected a table {where}, found {data!r}")
    for key in data:
        if key not in allowed:
            raise ValueError(
                f"recipe: unknown key {key!r} {where}; allowed are {', '.join(sorted(allowed))}"
            )


def check_types(defaults: object, values: Mapping[str, Any]) -> None:
    """Each value has the type of the field's default; a whole number may stand for a float.

    Raises:
        ValueError: one has not.
    """
    for key, value in values.items():
        wanted = type(getattr(defaults, key))
        whole_for_float = wanted is float and type(value) is int
        if type(value) is not wanted and not whole_for_float:
            raise ValueError(f"recipe: {key} is {value!r}; it must be of type {wanted.__name__}")
