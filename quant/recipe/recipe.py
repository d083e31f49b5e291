"""Recipes: layers to quantize, the methods for them, and the calibration data.

A recipe is data, written as TOML and read with the standard library:

    name = "w4a16"

    [calibration]
    samples = 128

    [[step]]
    method = "gptq"
    targets = ["model.layers.*"]
    bits = 4

Method rtn rounds, gptq solves, and gptaq solves for the outputs of the float model (`strength`).
Steps of method smoothquant and awq transform the float weights of a block before its layers are
quantized; they come before it, and their targets are the layers whose inputs are scaled. Steps that
change the whole float checkpoint (`PREPARATIONS`) come first of all; a recipe may consist of them
alone, and its result is a float checkpoint.
At the top level, `tp = 2` prepares for engines that split the model over two devices,
`lm_head = "w8a16"` is short for a step that quantizes the output head, which is kept otherwise, and
`tie = false` writes the head of a tied model apart from the token embedding, so that the two can
have different bits. A step whose target is `model.embed_tokens` rounds the token embedding.

`token_weights` in [calibration] sets the weight of an image token relative to a text token:
"uniform" (equal), "balanced" (all image tokens together weigh as much as all text tokens),
"gradient" (proportional to the loss's sensitivity to errors there, found for every block) or
numbers, `{image = 0.3, text = 1.0}`. With "token-gradient" every single token is weighted by the
loss's sensitivity to errors at it. `all_experts = true` calibrates each expert of a mixture on all
tokens.

`[kv_cache]` with `bits = 8` and `type = "fp8"` (its defaults) calibrates the scales of an FP8 KV
cache: for every layer the largest key / 448 and the largest value / 448. Checkpoints in the format
compressed-tensors hold them.

`[vision_input]` with `reduce = {method = "duplicates", threshold = 0.98}` drops visual tokens after
the merger (methods: `model.token_reduction.table`). The samples are calibrated without them, and
vlpress applies the rule when it runs the checkpoint; other engines do not know it. `max_pixels`
there is the largest area of an image: samples are calibrated with it, and the checkpoint's
processor configuration states it, which every engine reads.

`[recover]` with `params = "scales"` trains the scales of the quantized decoder after quantization,
`"norms"` the weights of its norms, `"rounding"` tunes the integers block by block; see `recover`.

Unknown keys are errors, because a misspelt key would otherwise mean its default. A pattern is a
shell-style glob over canonical layer names (`model.layers.0.self_attn.q_proj`), or a regular
expression after `re:`. `tower`, `decoder`, `head` or `embedding` instead of a pattern names all
layers of that part of the model; patterns that match linear layers leave the token embedding out.
The recipe with all defaults and patterns spelled out goes into the checkpoint.
"""

import fnmatch
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, StrictBool, StrictInt

from ...calib.fixed_weights import GRADIENTS, KINDS, FixedWeights
from ...common.near_misses import did_you_mean, near_misses, near_paths
from ...common.validation import Allowed, Integer, OneOf, parse, validated
from ..steps.preparation import Preparation
from ..steps.step import Step
from ..steps.table import METHODS
from ..steps.transform import Transform
from .kv_cache import KVCacheScheme
from .presets import HEADS, PRESETS
from .recover import Recover
from .steps import read_step
from .vision_input import VisionInput

TokenWeights = Annotated[
    Annotated[str, OneOf(KINDS)] | FixedWeights,
    Allowed(f"{', '.join(KINDS)}, or numbers such as {{image = 0.3, text = 1.0}}"),
]
Devices = Annotated[int, Integer(1)]


@validated
class Calibration:
    """Options of the calibration samples and their use."""

    samples: Annotated[int, Integer(1)] = 128
    """Number of samples drawn from the source."""
    seed: StrictInt = 0
    """Seed of that draw."""
    true_sequential: StrictBool = True
    """Inside a block, capture each group of layers after the ones before it were quantized."""
    token_weights: TokenWeights = "uniform"
    """Weight of an image or video token relative to a text token, see `find_token_weights`."""
    all_experts: StrictBool = False
    """Calibrate experts on all tokens, not on those routed to them; outputs follow the routing."""

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Build it from the plain data of a recipe's [calibration].

        Raises:
            ValueError: a key is unknown, or a value is out of range.
        """
        at = "calibration"
        weights = data.get("token_weights") if isinstance(data, Mapping) else None
        if isinstance(weights, Mapping):
            fixed = parse(FixedWeights, weights, "recipe", f"{at}.token_weights")
            data = {**data, "token_weights": fixed}
        return parse(cls, data, "recipe", at)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, which `from_dict` reads, with every default except `all_experts`."""
        values = asdict(self)
        # Only models with experts have it: records of the others are as they were without it.
        return (
            values if self.all_experts else {k: v for k, v in values.items() if k != "all_experts"}
        )


@validated
class _File:
    """The top level of a recipe file."""

    step: Annotated[
        list[Any], Field(min_length=1), Allowed("one or more tables, each written [[step]]")
    ]
    name: Annotated[str, BeforeValidator(str)] = "unnamed"
    tp: Devices = 1
    tie: StrictBool = True
    lm_head: Annotated[str, OneOf(tuple(HEADS), "without the key the output head is kept")] = ""
    calibration: Any = field(default_factory=dict)
    kv_cache: Any = None
    vision_input: Any = None
    recover: Any = None


@validated
class Recipe:
    """An ordered list of steps and the calibration they share."""

    name: str
    steps: tuple[Step, ...]
    calibration: Calibration = field(default_factory=Calibration)
    tp: Devices = 1
    """Tensor-parallel size at serving time; inner widths are padded to be divisible."""
    transforms: tuple[Transform, ...] = ()
    """Transforms of each block's float weights before its layers are quantized, in order."""
    kv_cache: KVCacheScheme | None = None
    """KV cache whose scales are calibrated; None: none are."""
    vision_input: VisionInput = field(default_factory=VisionInput)
    """Visual tokens of the samples and of the checkpoint."""
    tie: StrictBool = True
    """False: a head that is tied to the token embedding becomes a tensor of its own."""
    preparations: tuple[Preparation, ...] = ()
    """Changes of the whole float checkpoint before everything else, in order."""
    recover: Recover | None = None
    """Training after quantization; None: there is none."""

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized: the result is the prepared float checkpoint."""
        return not self.steps

    @property
    def needs_samples(self) -> bool:
        """Whether calibration samples are needed, by a preparation or to quantize."""
        return self.needs_calibration or any(p.uses_samples for p in self.preparations)

    @property
    def needs_calibration(self) -> bool:
        """Whether any step that quantizes, or the KV cache, uses activations."""
        steps = any(step.uses_activations for step in self.steps)
        tuned = self.recover is not None and self.recover.is_blockwise
        return steps or bool(self.transforms) or self.kv_cache is not None or tuned

    @property
    def needs_gradient(self) -> bool:
        """Whether token weights need gradients through the whole decoder."""
        return self.needs_calibration and self.calibration.token_weights in GRADIENTS

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build a recipe from plain data.

        Raises:
            ValueError: a key is unknown or missing, a value is out of range, or a transform comes
                after a step that quantizes.
        """
        file = parse(_File, data, "recipe")
        tables = [*file.step, *([HEADS[file.lm_head]] if file.lm_head else [])]
        steps = [read_step(table, f"step[{index}]") for index, table in enumerate(tables)]
        _check_order(steps)
        recipe = cls(
            name=file.name,
            steps=tuple(step for step in steps if isinstance(step, Step)),
            calibration=Calibration.from_dict(file.calibration),
            tp=file.tp,
            transforms=tuple(step for step in steps if isinstance(step, Transform)),
            kv_cache=None
            if file.kv_cache is None
            else parse(KVCacheScheme, file.kv_cache, "recipe", "kv_cache"),
            vision_input=VisionInput.from_table(file.vision_input),
            tie=file.tie,
            preparations=tuple(step for step in steps if isinstance(step, Preparation)),
            recover=Recover.from_table(file.recover),
        )
        _check_float(recipe)
        _check_recovery(recipe)
        return recipe

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read a recipe file; without the key `name` the recipe is named after the file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not TOML, or see `from_dict`.
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
        """Return a preset by name, or read a TOML file.

        Raises:
            FileNotFoundError: it is neither a preset nor a file.
            ValueError: see `from_toml`.
        """
        if str(name_or_path) in PRESETS:
            return cls.from_dict(PRESETS[str(name_or_path)])
        if not Path(name_or_path).is_file():
            near = [*near_misses(str(name_or_path), PRESETS), *near_paths(Path(name_or_path))]
            raise FileNotFoundError(
                f"recipe {str(name_or_path)!r} is neither a file nor a preset;"
                f"{did_you_mean(near)} presets are {', '.join(PRESETS)}"
            )
        return cls.from_toml(name_or_path)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data with every default spelled out, which `from_dict` reads."""
        return {
            "name": self.name,
            "tp": self.tp,
            # Only recipes that untie have the key: records of the others are as they were.
            **({} if self.tie else {"tie": False}),
            "calibration": self.calibration.to_dict(),
            # Records of recipes without it are as they were before it existed.
            **({"kv_cache": self.kv_cache.to_dict()} if self.kv_cache else {}),
            **({"vision_input": table} if (table := self.vision_input.to_dict()) else {}),
            **({"recover": self.recover.to_dict()} if self.recover else {}),
            "step": [
                *(preparation.to_dict() for preparation in self.preparations),
                *(transform.to_dict() for transform in self.transforms),
                *(step.to_dict() for step in self.steps),
            ],
        }


def pattern_matches(pattern: str, name: str) -> bool:
    """Tell whether a layer name matches a glob, or a regular expression written `re:...`.

    Raises:
        ValueError: the regular expression does not compile.
    """
    if not pattern.startswith("re:"):
        return fnmatch.fnmatchcase(name, pattern)
    try:
        return re.fullmatch(pattern[3:], name) is not None
    except re.error as error:
        raise ValueError(f"recipe: {pattern!r} is not a valid expression ({error})") from None


def _check_order(steps: Sequence[Step | Transform | Preparation]) -> None:
    """Check that preparations come first, then transforms, then at least one step that quantizes.

    Raises:
        ValueError: a step comes too late, or a transform comes before none.
    """
    kinds = (Preparation, Transform, Step)
    ranks = [next(rank for rank, kind in enumerate(kinds) if isinstance(s, kind)) for s in steps]
    if max(ranks) == kinds.index(Transform):
        alone = steps[ranks.index(kinds.index(Transform))]
        raise ValueError(
            f"recipe: {alone.method} alone quantizes nothing; add a step with method "
            f"{' or '.join(METHODS)}"
        )
    for index, step in enumerate(steps):
        later_kinds = kinds[ranks[index] + 1 :]
        earlier = next((s for s in steps[:index] if isinstance(s, later_kinds)), None)
        if earlier is not None:
            verb = "quantizes" if isinstance(earlier, Step) else "scales"
            raise ValueError(
                f"recipe: {step.method} comes after {earlier.method}, but changes the weights that "
                f"{earlier.method} {verb}; move it to the front"
            )


def _check_recovery(recipe: Recipe) -> None:
    """Refuse teachers with other tokens than those of the model that they teach.

    Raises:
        ValueError: an earlier step changes the tokens.
    """
    if recipe.recover is None or recipe.recover.is_blockwise:
        return
    for preparation in recipe.preparations:
        if preparation.changes_tokens:
            raise ValueError(
                f"recipe: recover needs teachers with the same tokens, but {preparation.method} "
                "changes those of the model; recover without it, or use params rounding"
            )


def _check_float(recipe: Recipe) -> None:
    """Refuse options that only quantization needs in a recipe that quantizes nothing.

    Raises:
        ValueError: one of them is given.
    """
    if not recipe.is_float:
        return
    for preparation in recipe.preparations:
        if preparation.why_not_alone:
            raise ValueError(
                f"recipe: {preparation.method}: {preparation.why_not_alone}; no step quantizes; "
                f"change it, or add a step with method {' or '.join(METHODS)}"
            )
    given = {
        "tp": recipe.tp != 1,
        "tie": not recipe.tie,
        "kv_cache": recipe.kv_cache is not None,
        "vision_input": bool(recipe.vision_input.to_dict()),
        "recover": recipe.recover is not None,
    }
    if odd := [key for key, is_given in given.items() if is_given]:
        raise ValueError(
            f"recipe: {odd[0]} is given, but {recipe.preparations[0].method} alone quantizes "
            f"nothing; remove it, or add a step with method {' or '.join(METHODS)}"
        )
