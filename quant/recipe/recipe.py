"""Recipes: which layers are quantized, how, and on how much calibration data.

A recipe is data, written as TOML and read with the standard library:

    name = "w4a16"

    [calibration]
    samples = 128

    [[step]]
    method = "gptq"
    targets = ["model.layers.*"]
    bits = 4

Method rtn rounds, gptq solves, and gptaq solves for what the float model would give (`strength`).
Steps of method smoothquant and awq transform the float weights of a block before its layers are
quantized; they stand first, and their targets are the layers whose inputs are to be scaled.
At the top level, `tp = 2` prepares for engines that split the model over two devices, and
`lm_head = "w8a16"` is short for a step that takes the output head, which is kept otherwise.

`token_weights` in [calibration] says how much an image token counts beside a text token: "uniform"
(alike), "balanced" (all image tokens together as much as all text tokens), "gradient" (as much as
the loss minds errors there, found for every block) or numbers, `{image = 0.3, text = 1.0}`. With
"token-gradient" every single token counts by how much the loss minds errors at it.

Keys that are not known are errors, because a misspelt one would otherwise be a default. A pattern
is a shell-style glob over canonical layer names (`model.layers.0.self_attn.q_proj`), or a regular
expression behind `re:`. The recipe with every default spelled out goes into the checkpoint.
"""

import fnmatch
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from ...calib.token_weights import GRADIENTS, KINDS, FixedWeights
from .presets import HEADS, PRESETS
from .steps import (
    Step,
    Transform,
    check_types,
    count_transforms,
    known_keys,
    read_step,
    read_transform,
)


@dataclass(frozen=True)
class Calibration:
    """What flows through the model while it is quantized."""

    samples: int = 128
    """Number of samples drawn from the source."""
    seed: int = 0
    """Seed of that draw."""
    true_sequential: bool = True
    """Inside a block, capture each group of layers after the ones before it were quantized."""
    token_weights: str | FixedWeights = "uniform"
    """How much an image or video token counts beside a text token, see `find_token_weights`."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"recipe: calibration.samples is {self.samples}; at least 1")
        if not isinstance(self.token_weights, FixedWeights) and self.token_weights not in KINDS:
            raise ValueError(
                f"recipe: calibration.token_weights is {self.token_weights!r}; allowed are "
                f"{', '.join(KINDS)} and numbers, such as {{image = 0.3, text = 1.0}}"
            )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build it from plain data.

        Raises:
            ValueError: a key is unknown, or a value is out of range.
        """
        known_keys(data, {f.name for f in fields(cls)}, "in [calibration]")
        # token_weights may be of two types and checks itself.
        check_types(cls(), {key: v for key, v in data.items() if key != "token_weights"})
        if not isinstance(weights := data.get("token_weights"), Mapping):
            return cls(**data)
        known_keys(weights, {f.name for f in fields(FixedWeights)}, "in token_weights")
        try:
            fixed = FixedWeights(**weights)
        except ValueError as error:
            raise ValueError(f"recipe: calibration.{error}") from None
        return cls(**{**data, "token_weights": fixed})

    def to_dict(self) -> dict[str, Any]:
        """Plain data with every default; `from_dict` takes it back."""
        return asdict(self)


@dataclass(frozen=True)
class Recipe:
    """An ordered list of steps and the calibration they share."""

    name: str
    steps: tuple[Step, ...]
    calibration: Calibration = field(default_factory=Calibration)
    tp: int = 1
    """Devices that engines will split the model over; inner widths are padded to suit."""
    transforms: tuple[Transform, ...] = ()
    """What is done to each block's float weights before its layers are quantized, in order."""

    def __post_init__(self) -> None:
        if type(self.tp) is not int or self.tp < 1:
            raise ValueError(f"recipe: tp is {self.tp!r}; it must be a whole number, at least 1")

    @property
    def needs_calibration(self) -> bool:
        """True if any step looks at activations."""
        return bool(self.transforms) or any(step.looks for step in self.steps)

    @property
    def needs_gradient(self) -> bool:
        """True if gradients through the whole decoder are taken for token weights."""
        return self.needs_calibration and self.calibration.token_weights in GRADIENTS

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build a recipe from plain data.

        Raises:
            ValueError: a key is unknown or missing, or a value is out of range.
        """
        known_keys(data, {"name", "tp", "lm_head", "calibration", "step"}, "at the top level")
        steps = data.get("step")
        if not isinstance(steps, list) or not steps:
            raise ValueError("recipe: no [[step]] found; a recipe needs at least one")
        if "lm_head" in data:
            steps = [*steps, _head_step(data["lm_head"])]
        first = count_transforms(steps)
        return cls(
            name=str(data.get("name", "unnamed")),
            steps=tuple(read_step(step) for step in steps[first:]),
            calibration=Calibration.from_dict(data.get("calibration", {})),
            tp=data.get("tp", 1),
            transforms=tuple(read_transform(step) for step in steps[:first]),
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
            "tp": self.tp,
            "calibration": self.calibration.to_dict(),
            "step": [
                *(transform.to_dict() for transform in self.transforms),
                *(step.to_dict() for step in self.steps),
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


def _head_step(preset: Any) -> dict[str, Any]:
    """The step that `lm_head = "w8a16"` at the top level stands for."""
    if not isinstance(preset, str) or preset not in HEADS:
        raise ValueError(
            f"recipe: lm_head is {preset!r}; allowed are {', '.join(HEADS)}, or no such line to "
            "keep the output head"
        )
    return HEADS[preset]
