"""What a compressed-tensors `quantization_config` says: read of any writer, and written.

A group of layers shares a scheme; its targets are names, expressions behind `re:`, or the class
name Linear. The fields are those of the library's `QuantizationConfig` and `QuantizationArgs`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ...recipe.scheme import Activations, QuantScheme
from .format import Contents
from .patterns import HEAD, excluding_patterns, layer_patterns

PACKED, INTEGER, MIXED = "pack-quantized", "int-quantized", "mixed-precision"
READABLE = (PACKED, INTEGER, "naive-quantized", MIXED)


@dataclass(frozen=True)
class Group:
    """One entry of `config_groups`."""

    targets: tuple[str, ...]
    scheme: QuantScheme

    @classmethod
    def from_config(cls, key: str, config: Any) -> Self:
        """Read one entry.

        Raises:
            ValueError: it asks for anything but integer weights and, at most, int8 activations.
        """
        if not isinstance(config, Mapping):
            raise ValueError(f"{key} is {config!r}; a group with weights and targets is needed")
        weights = config.get("weights")
        if not isinstance(weights, Mapping) or weights.get("type", "int") != "int":
            kind = weights.get("type") if isinstance(weights, Mapping) else weights
            raise ValueError(f"{key}: weights are {kind!r}; allowed are integers (type int)")
        strategy: str | None = weights.get("strategy")
        group_size: Any = weights.get("group_size")
        if strategy is None:
            strategy = "group" if (group_size or 0) > 0 else "channel"
        if strategy not in ("group", "channel", "tensor"):
            raise ValueError(
                f"{key}: strategy of the weights is {strategy!r}; allowed are group, channel, "
                "tensor"
            )
        if config.get("output_activations"):
            raise ValueError(f"{key}: output_activations are set; allowed is null")
        if config.get("format") not in (None, *READABLE):
            raise ValueError(
                f"{key}: format is {config['format']!r}; allowed are {', '.join(READABLE)}"
            )
        scheme = QuantScheme(
            bits=weights.get("num_bits", 8),
            group_size=group_size if strategy == "group" else -1,
            symmetric=bool(weights.get("symmetric", True)),
            activations=_activations(key, config.get("input_activations")),
        )
        targets = tuple(config.get("targets") or ())
        for target in targets:
            try:
                re.compile(target.removeprefix("re:"))
            except re.error as error:
                raise ValueError(
                    f"{key}: target {target!r} is not a valid expression ({error})"
                ) from None
        return cls(targets, scheme)


@dataclass(frozen=True)
class CompressedTensorsSettings:
    """What a compressed-tensors configuration says."""

    groups: tuple[Group, ...]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """See `Format.settings`."""
        where = "quantization_config"
        if config.get("format") not in READABLE:
            raise ValueError(
                f"{where}: format is {config.get('format')!r}; allowed are {', '.join(READABLE)}"
            )
        status = config.get("quantization_status", "compressed")
        if status != "compressed":
            raise ValueError(
                f"{where}: quantization_status is {status!r}; allowed is compressed (save the "
                "model compressed)"
            )
        for key in ("kv_cache_scheme", "transform_config"):
            if config.get(key):
                raise ValueError(f"{where}: {key} is set; allowed is null")
        sparsity = config.get("sparsity_config") or {}
        if sparsity.get("format", "dense") != "dense":
            raise ValueError(
                f"{where}: sparsity_config has the format {sparsity['format']!r}; allowed is dense"
            )
        groups = config.get("config_groups")
        if not isinstance(groups, Mapping) or not groups:
            raise ValueError(f"{where}: config_groups is {groups!r}; at least one is needed")
        try:
            return cls(tuple(Group.from_config(key, group) for key, group in groups.items()))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def scheme(self, names: Sequence[str]) -> QuantScheme:
        """See `Settings.scheme`: a target that is a name goes before expressions and classes.

        A single group holds for all layers: their names may have changed since it was written.
        """
        for kind in (_is_name, _is_expression, _is_class):
            for group in self.groups:
                if any(kind(target, name) for target in group.targets for name in names):
                    return group.scheme
        if len(self.groups) == 1:
            return self.groups[0].scheme
        raise ValueError(
            f"quantization_config: no target of config_groups matches {names[0]}; name it in one"
        )


def _is_name(target: str, name: str) -> bool:
    return target == name


def _is_expression(target: str, name: str) -> bool:
    return target.startswith("re:") and re.match(target[3:], name) is not None


def _is_class(target: str, name: str) -> bool:
    return target == "Linear"


def describe(contents: Contents, file_name: Callable[[str], str]) -> dict[str, Any]:
    """The `quantization_config` of a checkpoint, see `Format.quantization_config`."""
    formats = {_storage(scheme) for scheme in contents.by_scheme}
    act_order = contents.solver.act_order
    groups = {}
    for index, (scheme, names) in enumerate(contents.by_scheme.items()):
        # Each layer matches one group only: engines differ in which of several they take.
        found = layer_patterns(contents.config, names, either=contents.kept)
        targets = [f"re:{pattern}" for pattern in found]
        groups[f"group_{index}"] = {
            "targets": targets if len(contents.by_scheme) > 1 else ["Linear"],
            "weights": _weight_args(scheme, act_order),
            "input_activations": _input_args(scheme),
            "output_activations": None,
            # Not for one format alone: earlier versions of the library do not know the key.
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


def _storage(scheme: QuantScheme) -> str:
    return PACKED if scheme.activations == "none" else INTEGER


def _weight_args(scheme: QuantScheme, act_order: bool | None) -> dict[str, Any]:
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


def _input_args(scheme: QuantScheme) -> dict[str, Any] | None:
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
    """Layers that are kept, by the names of the file and as expressions for any other naming."""
    patterns = excluding_patterns(contents.config, contents.kept)
    names = [file_name(name) for name in contents.kept]
    if "lm_head" not in contents.linears:  # tied, but a module of its own in other libraries
        names.append("lm_head")
        patterns.append(HEAD)
    return [*names, *(f"re:{pattern}" for pattern in patterns)]


def _activations(key: str, args: Any) -> Activations:
    """What `input_activations` asks for."""
    if not args:
        return "none"
    kind = (
        args.get("num_bits", 8),
        args.get("type", "int"),
        bool(args.get("symmetric", True)),
        args.get("strategy"),
        args.get("dynamic", False),
    )
    if kind == (8, "int", True, "token", True):
        return "dynamic"
    if kind == (8, "int", True, "tensor", False):
        return "static"
    raise ValueError(
        f"{key}: input_activations are {args!r}; allowed are symmetric int8, dynamic per token or "
        "static per tensor"
    )
