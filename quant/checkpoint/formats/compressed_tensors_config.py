"""The `quantization_config` of compressed-tensors: reading any writer's, and writing.

A group of layers shares a scheme; its targets are names, expressions after `re:`, or the class
name Linear. The fields are those of the library's `QuantizationConfig` and `QuantizationArgs`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, StrictBool, model_validator

from ....common.validation import Allowed, Truthy, empty_to_none, join_path, parse
from ...recipe.scheme import Activations, Bits, QuantScheme, Scheme
from .contents import Contents
from .format import CONFIG, check_expression
from .patterns import HEAD, excluding_patterns, layer_patterns

PACKED, INTEGER, MIXED = "pack-quantized", "int-quantized", "mixed-precision"
INT8_INPUTS = "symmetric int8, dynamic per token or static per tensor"

Storage = Literal["pack-quantized", "int-quantized", "naive-quantized", "mixed-precision"]
Target = Annotated[str, AfterValidator(lambda target: check_expression(target, ["re:"]))]
Unset = Annotated[None, BeforeValidator(empty_to_none)]


class WeightArgs(BaseModel):
    """`weights` of a group: integers."""

    num_bits: Bits = 8
    type: Literal["int"] = "int"
    symmetric: Truthy = True
    strategy: Literal["group", "channel", "tensor"] | None = None
    group_size: Any = None
    """Ignored by other strategies than group, and checked as part of the scheme there."""

    @property
    def scheme_group_size(self) -> Any:
        """Group size of the scheme: -1 = one scale per output row."""
        size = self.group_size
        strategy = self.strategy or ("group" if isinstance(size, int) and size > 0 else "channel")
        return size if strategy == "group" else -1


class InputArgs(BaseModel):
    """`input_activations` of a group: int8."""

    num_bits: Literal[8] = 8
    type: Literal["int"] = "int"
    symmetric: Annotated[Literal[True], BeforeValidator(bool), Allowed(f"true ({INT8_INPUTS})")] = (
        True
    )
    strategy: Literal["token", "tensor"]
    dynamic: StrictBool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dynamic != (self.strategy == "token"):
            raise ValueError(
                f"dynamic is {self.dynamic} with strategy {self.strategy}; allowed: {INT8_INPUTS}"
            )
        return self


class Group(BaseModel):
    """One entry of `config_groups`."""

    targets: Annotated[tuple[Target, ...], BeforeValidator(lambda value: value or ())] = ()
    weights: WeightArgs
    input_activations: Annotated[InputArgs | None, BeforeValidator(empty_to_none)] = None
    output_activations: Unset = None
    format: Storage | None = None

    @property
    def activations(self) -> Activations:
        """The scheme's name of `input_activations`."""
        if self.input_activations is None:
            return "none"
        return "dynamic" if self.input_activations.dynamic else "static"


class Sparsity(BaseModel):
    """`sparsity_config`."""

    format: Literal["dense"] = "dense"


class Config(BaseModel):
    """Keys of a `quantization_config` that are read, of any writer."""

    format: Storage
    quantization_status: Annotated[
        Literal["compressed"], Allowed("compressed; save the model compressed")
    ] = "compressed"
    kv_cache_scheme: Unset = None
    transform_config: Unset = None
    sparsity_config: Annotated[Sparsity | None, BeforeValidator(empty_to_none)] = None
    config_groups: Annotated[dict[str, Group], Field(min_length=1)]


class CompressedTensorsSettings:
    """Schemes by a compressed-tensors configuration: one for each group of targets."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Read a `quantization_config`, see `Format.settings`."""
        self._groups = [
            (group.targets, _scheme(key, group))
            for key, group in parse(Config, config, CONFIG).config_groups.items()
        ]

    def scheme(self, names: Sequence[str]) -> QuantScheme:
        """See `Settings.scheme`: a target that is a name precedes expressions and classes.

        A single group applies to all layers: their names may have changed since it was written.
        """
        for matches in (_is_name, _is_expression, _is_class):
            for targets, scheme in self._groups:
                if any(matches(target, name) for target in targets for name in names):
                    return scheme
        if len(self._groups) == 1:
            return self._groups[0][1]
        raise ValueError(
            f"{CONFIG}: no target of config_groups matches {names[0]}; name it in one of them"
        )


def _scheme(key: str, group: Group) -> QuantScheme:
    values = {
        "bits": group.weights.num_bits,
        "group_size": group.weights.scheme_group_size,
        "symmetric": group.weights.symmetric,
        "activations": group.activations,
    }
    return parse(QuantScheme, values, CONFIG, join_path("config_groups", [key, "weights"]))


def _is_name(target: str, name: str) -> bool:
    return target == name


def _is_expression(target: str, name: str) -> bool:
    return target.startswith("re:") and re.match(target[3:], name) is not None


def _is_class(target: str, name: str) -> bool:
    return target == "Linear"


def describe(contents: Contents, file_name: Callable[[str], str]) -> dict[str, Any]:
    """Return the `quantization_config` of a checkpoint, see `Format.quantization_config`."""
    formats = {_storage(scheme) for scheme in contents.by_scheme}
    act_order = contents.solver.act_order
    groups = {}
    for index, (scheme, names) in enumerate(contents.by_scheme.items()):
        # Each layer matches exactly one group: engines differ in their choice among several.
        patterns = layer_patterns(contents.config, names, either=contents.unquantized)
        targets = [f"re:{pattern}" for pattern in patterns]
        groups[f"group_{index}"] = {
            "targets": targets if len(contents.by_scheme) > 1 else ["Linear"],
            "weights": _weight_args(scheme, act_order),
            "input_activations": _input_args(scheme),
            "output_activations": None,
            # Only for several formats: earlier versions of the library do not know the key.
            **({"format": _storage(scheme)} if len(formats) > 1 else {}),
        }
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else MIXED,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": _ignored(contents, file_name),
        "config_groups": groups,
    }


def _storage(scheme: Scheme) -> str:
    return PACKED if scheme.activations == "none" else INTEGER


def _weight_args(scheme: Scheme, act_order: bool | None) -> dict[str, Any]:
    per_row = scheme.group_size == -1
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if per_row else "group",
        "group_size": None if per_row else scheme.group_size,
        "dynamic": False,
        "actorder": "weight" if act_order else None,
    }


def _input_args(scheme: Scheme) -> dict[str, Any] | None:
    if scheme.activations == "none":
        return None
    dynamic = scheme.activations == "dynamic"
    return {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "strategy": "token" if dynamic else "tensor",
        "group_size": None,
        "dynamic": dynamic,
    }


def _ignored(contents: Contents, file_name: Callable[[str], str]) -> list[str]:
    """Return the unquantized layers: names in the file, then expressions for other namings."""
    patterns = excluding_patterns(contents.config, contents.unquantized)
    names = [file_name(name) for name in contents.unquantized]
    if "lm_head" not in contents.linears:  # tied, but a module of its own in other libraries
        names.append("lm_head")
        patterns.append(HEAD)
    return [*names, *(f"re:{pattern}" for pattern in patterns)]
