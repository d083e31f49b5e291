"""The `quantization_config` of compressed-tensors: reading any writer's, and writing.

A group of layers shares a scheme; its targets are names, expressions after `re:`, or the class
names Linear and Embedding. The fields are those of the library's `QuantizationConfig` and
`QuantizationArgs`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, StrictBool, model_validator

from .....common.validation import Allowed, Truthy, empty_to_none, join_path, parse
from .....model.families import EMBEDDING
from ....recipe.scheme import Activations, Bits, QuantScheme, Scheme, TableScheme
from ..contents import Contents
from ..format import CONFIG
from ..patterns import HEAD, carried_patterns, excluding_patterns, layer_patterns
from . import floats
from .group import Group, Storage, Unset
from .tables import STORAGES

PACKED, INTEGER, MIXED = "pack-quantized", "int-quantized", "mixed-precision"
KV_CACHE = {
    "num_bits": 8,
    "type": "float",
    "symmetric": True,
    "strategy": "tensor",
    "group_size": None,
    "dynamic": False,
}
MTP = "^mtp.*"
"""The module for multi-token prediction in an `ignore` list, as llm-compressor writes it."""
INT8_INPUTS = "symmetric int8, dynamic per token or static per tensor"


class WeightArgs(BaseModel):
    """`weights` of a group: integers."""

    num_bits: Bits = 8
    type: Annotated[Literal["int"], Allowed("int, float")] = "int"
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


class KVCacheArgs(BaseModel):
    """`kv_cache_scheme`: FP8 with one scale per layer for keys and one for values."""

    num_bits: Literal[8] = 8
    type: Annotated[Literal["float"], Allowed("float (FP8, one scale per layer)")]
    symmetric: Annotated[Literal[True], BeforeValidator(bool), Allowed("true")] = True
    strategy: Annotated[Literal["tensor"], Allowed("tensor (one scale per layer)")] = "tensor"
    dynamic: Annotated[Literal[False], Allowed("false (calibrated scales)")] = False


class IntegerGroup(Group):
    """A group with weights of integers."""

    weights: WeightArgs
    input_activations: Annotated[InputArgs | None, BeforeValidator(empty_to_none)] = None

    scheme_type: ClassVar[type[Scheme]] = QuantScheme

    def values(self) -> dict[str, Any]:
        """See `Group.values`."""
        return {
            "bits": self.weights.num_bits,
            "group_size": self.weights.scheme_group_size,
            "symmetric": self.weights.symmetric,
            "activations": self.activations,
        }

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
    kv_cache_scheme: Annotated[KVCacheArgs | None, BeforeValidator(empty_to_none)] = None
    transform_config: Unset = None
    sparsity_config: Annotated[Sparsity | None, BeforeValidator(empty_to_none)] = None
    config_groups: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]


class CompressedTensorsSettings:
    """Schemes by a compressed-tensors configuration: one for each group of targets."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Read a `quantization_config`, see `Format.settings`."""
        self._groups = [
            _read_group(key, data)
            for key, data in parse(Config, config, CONFIG).config_groups.items()
        ]

    def scheme(self, names: Sequence[str]) -> Scheme:
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


def _read_group(key: str, data: Mapping[str, Any]) -> tuple[tuple[str, ...], Scheme]:
    """Return the targets of a group and their scheme."""
    weights, at = data.get("weights"), join_path("config_groups", [key])
    is_float = isinstance(weights, Mapping) and weights.get("type") == "float"
    kind: type[Group] = floats.FloatGroup if is_float else IntegerGroup
    group = parse(kind, data, CONFIG, at)
    try:
        values = group.values()
    except ValueError as error:
        raise ValueError(f"{CONFIG}: {at}.{error}") from None
    return group.targets, parse(kind.scheme_type, values, CONFIG, f"{at}.weights")


def _is_name(target: str, name: str) -> bool:
    return target == name


def _is_expression(target: str, name: str) -> bool:
    return target.startswith("re:") and re.match(target[3:], name) is not None


def _is_class(target: str, name: str) -> bool:
    return target == ("Embedding" if name.endswith("embed_tokens") else "Linear")


def describe(contents: Contents, file_name: Callable[[str], str]) -> dict[str, Any]:
    """Return the `quantization_config` of a checkpoint, see `Format.quantization_config`."""
    formats = {_storage(scheme) for scheme in contents.by_scheme}
    act_order = contents.solver.act_order
    # The class name Linear matches no embedding.
    has_patterns = len(contents.by_scheme) > 1 or EMBEDDING in contents.quantized
    groups = {}
    for index, (scheme, names) in enumerate(contents.by_scheme.items()):
        # Each layer matches exactly one group: engines differ in their choice among several.
        patterns = layer_patterns(
            contents.config,
            names,
            either=contents.unquantized,
            carried=contents.quantizes_carried,
        )
        targets = [f"re:{pattern}" for pattern in patterns]
        groups[f"group_{index}"] = {
            "targets": targets if has_patterns else ["Linear"],
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
        "kv_cache_scheme": None if contents.kv_cache is None else KV_CACHE,
        "ignore": _ignored(contents, file_name),
        "config_groups": groups,
    }


def _storage(scheme: Scheme) -> str:
    if isinstance(scheme, TableScheme):
        return STORAGES[scheme.table.scale_form].name
    return PACKED if scheme.activations == "none" else INTEGER


def _weight_args(scheme: Scheme, act_order: bool | None) -> dict[str, Any]:
    if isinstance(scheme, TableScheme):
        return floats.weight_args(scheme)
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
    if isinstance(scheme, TableScheme):
        return floats.input_args(scheme)
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
    config, carried = contents.config, contents.carried_unquantized
    patterns = excluding_patterns(config, contents.unquantized, carried=contents.quantizes_carried)
    patterns += carried_patterns(config, carried, MTP)
    names = [file_name(name) for name in (*contents.unquantized, *carried)]
    if "lm_head" not in contents.linears:  # tied, but a module of its own in other libraries
        names.append("lm_head")
        patterns.append(HEAD)
    return [*names, *(f"re:{pattern}" for pattern in patterns)]
