"""GPTQ checkpoints (`quant_method: gptq`), version 1 (`gptq`) and 2 (`gptq_v2`).

Per layer: `qweight` int32 [K * bits / 32, N] packed along K, `qzeros` int32 [G, N * bits / 32]
packed along N, `scales` fp16 [G, N], `g_idx` int32 [K], `bias` fp16 [N] if the source has one.
v1 stores zero points minus one, v2 stores them unchanged. docs/format.md is normative.

Letters: N = out_features, K = in_features, G = groups per row.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

import torch
from pydantic import AfterValidator, BaseModel, BeforeValidator
from torch import Tensor

from ....common.validation import Truthy, empty_to_none, join_path, parse
from ....model.families import EMBEDDING, LinearSpec, family_of
from ...compressed_weight import CompressedWeight
from ...methods.affine import QuantizedWeight
from ...recipe.scheme import GroupSize, QuantScheme, Scheme
from ..safetensors_folder.folder_format import FolderFormat
from .contents import Contents, layers_phrase
from .format import (
    CONFIG,
    FLOATS,
    INDICES,
    QUANTIZED_INPUTS,
    Shapes,
    check_expression,
    check_parts,
    check_symmetric,
    fp16_scales,
    group_index,
    integer_scheme,
    integers_of,
    require_part,
)
from .packing import VALUES, pack, unpack
from .patterns import HEAD, carried_patterns, excluding_patterns, layer_patterns

GPTQBits = Literal[2, 3, 4, 8]
BITS = get_args(GPTQBits)
Rule = Annotated[str, AfterValidator(lambda rule: check_expression(rule, prefixes=("+:", "-:")))]
VERSIONS = ("gptq", "gptq_v2")
MTP = r".*mtp.*"
"""The module for multi-token prediction in a rule: vLLM looks for rules with this name."""


@dataclass(frozen=True)
class GPTQ(FolderFormat):
    """One of the two versions of the format."""

    name: str
    zero_offset: bool
    """True for v1: zero points are stored minus one."""
    quant_method: str = "gptq"
    kinds: tuple[str, ...] = (QuantScheme.kind,)
    parts: tuple[str, ...] = ("qweight", "qzeros", "scales", "g_idx")
    marker: str = "qweight"
    order_part: str | None = "g_idx"
    config_files: tuple[str, ...] = ("quantize_config.json",)

    def reads(self, config: Mapping[str, Any]) -> bool:
        """See `FolderFormat.reads`."""
        return version_of(config) == self.name

    def why_not(self, contents: Contents) -> str | None:
        """See `Format.why_not`."""
        if names := contents.where(lambda spec, _: spec.part == "tower"):
            return (
                f"{layers_phrase(names, 'is', 'are')} in the vision tower, which engines that read "
                "GPTQ load unquantized; leave the tower out, or use compressed-tensors"
            )
        if EMBEDDING in contents.quantized:
            return (
                f"{EMBEDDING} is the token embedding, which engines that read GPTQ load "
                "unquantized; leave it out, or use compressed-tensors"
            )
        if names := contents.where(lambda _, scheme: scheme.activations != "none"):
            return f"{layers_phrase(names, 'has', 'have')} {QUANTIZED_INPUTS}"
        if names := contents.where(lambda _, scheme: scheme.bits not in BITS):
            bits = contents.schemes[names[0]].bits
            return (
                f"{layers_phrase(names, 'has', 'have')} {bits} bits; gptq holds "
                f"{', '.join(map(str, BITS))}, compressed-tensors holds 2 to 8"
            )
        if self.zero_offset and (names := contents.where(lambda _, scheme: not scheme.symmetric)):
            return (
                f"{layers_phrase(names, 'uses', 'use')} an asymmetric scheme; GPTQ v1 stores "
                "zero_point - 1 and cannot represent 0; use gptq_v2 or compressed-tensors"
            )
        if names := contents.where(
            lambda spec, _: spec.in_features % VALUES or spec.out_features % VALUES
        ):
            return (
                f"{layers_phrase(names, 'has', 'have')} a width that is not a multiple of "
                f"{VALUES}, as packing requires; use compressed-tensors"
            )
        return None

    def encode(self, weight: CompressedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
        """See `Format.encode`; scales are fp16 for every `dtype`."""
        weight = integers_of(weight)
        bits = weight.scheme.bits
        zero_points = weight.zero_points.t()
        if self.zero_offset:
            if bool((zero_points == 0).any()):
                raise ValueError(
                    "a zero point is 0, which GPTQ v1 cannot represent (it stores zero_point - 1); "
                    "use gptq_v2"
                )
            zero_points = zero_points - 1
        return {
            "qweight": pack(weight.integers.t(), bits),
            "qzeros": pack(zero_points.t(), bits).t().contiguous(),
            "scales": fp16_scales(weight.scales),
            "g_idx": weight.column_groups().to(torch.int32),
        }

    def decode(self, tensors: Mapping[str, Tensor], scheme: Scheme, name: str) -> QuantizedWeight:
        """See `Format.decode`; without `g_idx` the groups are contiguous."""
        scheme = integer_scheme(scheme)
        bits, qweight = scheme.bits, require_part(tensors, "qweight", name)
        if qweight.dim() != 2 or qweight.dtype != torch.int32 or qweight.shape[0] % bits:
            raise ValueError(
                f"{name}.qweight is {qweight.dtype} {list(qweight.shape)}; for {bits} bits it must "
                f"be an int32 matrix whose rows are a multiple of {bits}"
            )
        columns, rows = qweight.shape[0] * 32 // bits, qweight.shape[1]
        groups = scheme.groups(columns)
        order: Shapes = {"g_idx": ((columns,), INDICES)} if "g_idx" in tensors else {}
        expected: Shapes = {
            "qzeros": ((groups, rows * bits // 32), (torch.int32,)),
            "scales": ((groups, rows), FLOATS),
            **order,
        }
        check_parts(tensors, expected, name)
        zero_points = unpack(tensors["qzeros"].t(), bits)
        if self.zero_offset:
            # Modulo 2**bits: writers that packed 0 - 1 stored a field with all bits set.
            zero_points = ((zero_points.to(torch.int16) + 1) & scheme.max_level).to(torch.uint8)
        index = None
        if "g_idx" in tensors:
            index = group_index(tensors["g_idx"], groups, f"{name}.g_idx")
        weight = QuantizedWeight(
            integers=unpack(qweight, bits).t().contiguous(),
            scales=tensors["scales"].t().to(torch.float32, copy=True).contiguous(),
            zero_points=zero_points.contiguous(),
            scheme=scheme,
            group_index=index,
        )
        check_symmetric(weight, name, "sym or checkpoint_format")
        return weight

    def settings(self, config: Mapping[str, Any]) -> "GPTQSettings":
        """See `FolderFormat.settings`."""
        return GPTQSettings.from_config(config)

    def quantization_config(
        self, contents: Contents, file_name: Callable[[str], str]
    ) -> dict[str, Any]:
        """See `FolderFormat.quantization_config`: Qwen's keys, then those of other engines."""
        scheme = next(iter(contents.by_scheme))
        solver = contents.solver
        damp = {} if solver.damp_percent is None else {"damp_percent": solver.damp_percent}
        return {
            "bits": scheme.bits,
            "group_size": scheme.group_size,
            **damp,
            "desc_act": bool(contents.reordered),
            "static_groups": not contents.reordered,
            "sym": scheme.symmetric,
            "true_sequential": bool(solver.true_sequential),
            "quant_method": "gptq",
            "checkpoint_format": self.name,
            "dataset": None,
            "lm_head": "lm_head" in contents.quantized,
            "modules_in_block_to_quantize": _modules_in_block(contents),
            "dynamic": _rules(contents),
        }

    def stored_bytes(self, spec: LinearSpec, scheme: Scheme, dtype: torch.dtype) -> int:
        """See `Format.stored_bytes`."""
        groups = scheme.groups(spec.in_features)
        per_group = spec.out_features * scheme.bits // 8 + spec.out_features * 2
        return spec.weights * scheme.bits // 8 + groups * per_group + spec.in_features * 4

    def bias_dtype(self, stored: torch.dtype) -> torch.dtype:
        """See `Format.bias_dtype`."""
        return torch.float16


def version_of(config: Mapping[str, Any]) -> str:
    """Return the version that a `quantization_config` names; without the key it is version 1.

    Raises:
        ValueError: it is neither of the two.
    """
    version = config.get("checkpoint_format") or config.get("format") or "gptq"
    if version not in VERSIONS:
        raise ValueError(
            f"{CONFIG}: checkpoint_format is {version!r}; allowed: {', '.join(VERSIONS)}"
        )
    return str(version)


class GPTQScheme(BaseModel):
    """Keys of a scheme, in a `quantization_config` and in its rules."""

    bits: GPTQBits
    group_size: GroupSize
    sym: Truthy = True

    def scheme(self) -> QuantScheme:
        """Return the scheme of weights alone."""
        return QuantScheme(self.bits, self.group_size, self.sym)


class GPTQConfig(GPTQScheme):
    """Keys of a `quantization_config` that are read, of any writer."""

    pack_dtype: Literal["int32"] = "int32"
    dynamic: Annotated[dict[Rule, Any] | None, BeforeValidator(empty_to_none)] = None
    """Changes by regular expression, with the prefix `-:` (left out), `+:` or none (changed)."""


@dataclass(frozen=True)
class GPTQSettings:
    """Schemes by a GPTQ configuration: one for all layers, and rules that change it for some."""

    base: QuantScheme
    rules: tuple[tuple[str, Any], ...] = ()
    """Keys of `dynamic` with their values."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """See `FolderFormat.settings`."""
        values = parse(GPTQConfig, config, CONFIG)
        return cls(values.scheme(), tuple((values.dynamic or {}).items()))

    def scheme(self, names: Sequence[str]) -> QuantScheme:
        """See `Settings.scheme`: the first rule that matches one of the names decides."""
        base = self.base
        for rule, changes in self.rules:
            expression = rule.removeprefix("+:")
            # A rule that leaves layers out does not apply to one that is stored quantized.
            if rule.startswith("-:") or not any(re.match(expression, name) for name in names):
                continue
            at = join_path("dynamic", [rule])
            values = {"bits": base.bits, "group_size": base.group_size, "sym": base.symmetric}
            values |= parse(dict[str, Any], changes, CONFIG, at)
            return parse(GPTQScheme, values, CONFIG, at).scheme()
        return base


def _modules_in_block(contents: Contents) -> list[list[str]]:
    """Return the quantized layers of a decoder block by shared input; the head comes last."""
    stage = family_of(contents.config).decoder
    blocks = stage.blocks(contents.config)
    taps: dict[str, list[str]] = {}
    for linear in stage.linears:
        for name in linear.names(contents.config):
            if any(f"{block}.{name}" in contents.quantized for block in blocks):
                taps.setdefault(linear.tap, []).append(name)
    head = [["lm_head"]] if "lm_head" in contents.quantized else []
    carried = [[name] for name, spec in contents.quantized.items() if spec.part == "mtp"]
    return [*taps.values(), *head, *carried]


def _rules(contents: Contents) -> dict[str, dict[str, Any]]:
    """Return rules in GPTQModel's syntax: `-:` excludes layers, `+:` gives them another scheme."""
    config, carried = contents.config, contents.quantizes_carried
    left_out = excluding_patterns(config, contents.unquantized, carried=carried)
    left_out += carried_patterns(config, contents.carried_unquantized, MTP)
    if "lm_head" not in contents.quantized and HEAD not in left_out:
        left_out.append(HEAD)
    rules: dict[str, dict[str, Any]] = {f"-:{pattern}": {} for pattern in left_out}
    for scheme, names in list(contents.by_scheme.items())[1:]:
        changes = {"bits": scheme.bits, "group_size": scheme.group_size, "sym": scheme.symmetric}
        either = contents.unquantized
        for pattern in layer_patterns(config, names, either=either, carried=carried):
            rules[f"+:{pattern}"] = changes
    return rules
