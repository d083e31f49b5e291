"""Recipes: which layers are quantized, how, and on how much calibration data.

A recipe is data, written as TOML and read with the standard library:

    name = "w4a16"

    [calibration]
    samples = 128

    [[step]]
    method = "gptq"
    targets = ["model.layers.*"]
    bits = 4

Keys that are not known are errors, because a misspelt one would otherwise be a default. A pattern
is a shell-style glob over canonical layer names (`model.layers.0.self_attn.q_proj`), or a regular
expression behind `re:`. The recipe with every default spelled out goes into the checkpoint.
"""

import fnmatch
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from .scheme import QuantScheme

Method = Literal["gptq", "rtn"]

DECODER = "model.layers.*"


@dataclass(frozen=True)
class Step:
    """One pass over some of the layers."""

    method: Method
    scheme: QuantScheme
    targets: tuple[str, ...] = (DECODER,)
    ignore: tuple[str, ...] = ()
    damp_percent: float = 0.01
    """Fraction of the Hessian's mean diagonal added to it; gptq only."""
    act_order: bool = True
    """Solve columns by falling activation energy; gptq only."""
    block_size: int = 128
    """Columns per lazy update; gptq only."""
    scale_search: bool = True
    """Shrink scales where calibration says so; gptq only."""

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(
                f"recipe: method is {self.method!r}; allowed are {', '.join(get_args(Method))}"
            )
        if not self.targets:
            raise ValueError("recipe: a step has no targets; name at least one layer pattern")
        if not 0 < self.damp_percent <= 1:
            raise ValueError(
                f"recipe: damp_percent is {self.damp_percent}; it is a fraction above 0, at most 1"
            )
        if self.block_size < 1:
            raise ValueError(f"recipe: block_size is {self.block_size}; it must be at least 1")


@dataclass(frozen=True)
class Calibration:
    """What flows through the model while it is quantized."""

    samples: int = 128
    """Number of samples drawn from the source."""
    seed: int = 0
    """Seed of that draw."""
    true_sequential: bool = True
    """Inside a block, capture each group of layers after the ones before it were quantized."""
    image_weight: float = 1.0
    """Weight of an image or video token in the Hessians; a text token counts 1."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"recipe: calibration.samples is {self.samples}; at least 1")
        if not self.image_weight > 0:
            raise ValueError(f"recipe: calibration.image_weight is {self.image_weight}; above 0")


@dataclass(frozen=True)
class Recipe:
    """An ordered list of steps and the calibration they share."""

    name: str
    steps: tuple[Step, ...]
    calibration: Calibration = field(default_factory=Calibration)

    @property
    def needs_calibration(self) -> bool:
        """True if any step looks at activations."""
        return any(step.method != "rtn" for step in self.steps)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build a recipe from plain data.

        Raises:
            ValueError: a key is unknown or missing, or a value is out of range.
        """
        _known(data, {"name", "calibration", "step"}, "at the top level")
        steps = data.get("step")
        if not isinstance(steps, list) or not steps:
            raise ValueError("recipe: no [[step]] found; a recipe needs at least one")
        calibration = data.get("calibration", {})
        _known(calibration, {f.name for f in fields(Calibration)}, "in [calibration]")
        _check_types(Calibration(), calibration)
        return cls(
            name=str(data.get("name", "unnamed")),
            steps=tuple(_step(step) for step in steps),
            calibration=Calibration(**calibration),
        )

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read a recipe file; the file's stem is its name unless it says another.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not TOML, or as `from_dict`.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                data = tomllib.load(file)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path}: not valid TOML ({error})") from None
        try:
            return cls.from_dict({"name": path.stem, **data})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def resolve(cls, name_or_path: str | Path) -> Self:
        """A preset by name, or a TOML file.

        Raises:
            FileNotFoundError: neither a preset nor a file.
        """
        if str(name_or_path) in PRESETS:
            return cls.from_dict(PRESETS[str(name_or_path)])
        if not Path(name_or_path).is_file():
            raise FileNotFoundError(
                f"recipe {str(name_or_path)!r} is neither a file nor a preset; "
                f"presets are {', '.join(PRESETS)}"
            )
        return cls.from_toml(name_or_path)

    def to_dict(self) -> dict[str, Any]:
        """Plain data with every default spelled out; `from_dict` takes it back."""
        return {
            "name": self.name,
            "calibration": {f.name: getattr(self.calibration, f.name) for f in fields(Calibration)},
            "step": [
                {
                    "method": step.method,
                    "targets": list(step.targets),
                    "ignore": list(step.ignore),
                    **step.scheme.to_dict(),
                    "damp_percent": step.damp_percent,
                    "act_order": step.act_order,
                    "block_size": step.block_size,
                    "scale_search": step.scale_search,
                }
                for step in self.steps
            ],
        }


def pattern_matches(pattern: str, name: str) -> bool:
    """Whether a layer name matches a glob, or a regular expression written ``re:...``.

    Raises:
        ValueError: the regular expression is broken.
    """
    if not pattern.startswith("re:"):
        return fnmatch.fnmatchcase(name, pattern)
    try:
        return re.fullmatch(pattern[3:], name) is not None
    except re.error as error:
        raise ValueError(f"recipe: {pattern!r} is not a valid expression ({error})") from None


def _step(data: Any) -> Step:
    grid = {f.name for f in fields(QuantScheme)}
    other = {f.name for f in fields(Step)} - {"scheme"}
    if not isinstance(data, Mapping):
        raise ValueError("recipe: step must be a list of tables, written [[step]]")
    _known(data, grid | other, "in [[step]]")
    for key in ("method", "bits"):
        if key not in data:
            raise ValueError(f"recipe: a step has no {key!r}; it is required")
    values = {key: value for key, value in data.items() if key in other}
    for key in ("targets", "ignore"):
        if key in values:
            patterns = values[key]
            if not isinstance(patterns, list) or not all(isinstance(p, str) for p in patterns):
                raise ValueError(f"recipe: {key} is {patterns!r}; it must be a list of patterns")
            values[key] = tuple(patterns)
    try:
        scheme = QuantScheme(**{key: value for key, value in data.items() if key in grid})
    except ValueError as error:
        raise ValueError(f"recipe: {error}") from None
    _check_types(Step("rtn", scheme), values)
    return Step(scheme=scheme, **values)


def _known(data: Any, allowed: set[str], where: str) -> None:
    if not isinstance(data, Mapping):
        raise ValueError(f"recipe: expected a table {where}, found {data!r}")
    for key in data:
        if key not in allowed:
            raise ValueError(
                f"recipe: unknown key {key!r} {where}; allowed are {', '.join(sorted(allowed))}"
            )


def _check_types(defaults: object, values: Mapping[str, Any]) -> None:
    """Each value has the type of the field's default; a whole number may stand for a float."""
    for key, value in values.items():
        wanted = type(getattr(defaults, key))
        whole_for_float = wanted is float and type(value) is int
        if type(value) is not wanted and not whole_for_float:
            raise ValueError(f"recipe: {key} is {value!r}; it must be of type {wanted.__name__}")


def _preset(name: str, method: Method, bits: int) -> dict[str, Any]:
    return {
        "name": name,
        "step": [{"method": method, "bits": bits, "group_size": 128, "targets": [DECODER]}],
    }


PRESETS: dict[str, dict[str, Any]] = {
    "w4a16": _preset("w4a16", "gptq", 4),
    "w8a16": _preset("w8a16", "gptq", 8),
    "w3a16": _preset("w3a16", "gptq", 3),
    "w4a16-rtn": _preset("w4a16-rtn", "rtn", 4),
    "w8a16-rtn": _preset("w8a16-rtn", "rtn", 8),
    "w3a16-rtn": _preset("w3a16-rtn", "rtn", 3),
}
