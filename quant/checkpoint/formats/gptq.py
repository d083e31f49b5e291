"""GPTQ checkpoints (`quant_method: gptq`), version 1 (`gptq`) and 2 (`gptq_v2`).

Per layer: `qweight` int32 [K * bits / 32, N] packed along K, `qzeros` int32 [G, N * bits / 32]
packed along N, `scales` fp16 [G, N], `g_idx` int32 [K], `bias` fp16 [N] if the source has one.
v1 stores zero points minus one, v2 as they are. docs/format.md is exact about all of it.

Letters: N = out_features, K = in_features, G = groups per row.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from ....model.families import LinearSpec, family_of
from ...methods.affine import QuantizedWeight
from ...recipe.scheme import QuantScheme
from .format import (
    FLOATS,
    INDICES,
    ROUNDED_INPUTS,
    Contents,
    Shapes,
    check_parts,
    check_symmetric,
    fp16_scales,
    group_index,
    need,
    say,
)
from .packing import VALUES, pack, unpack
from .patterns import HEAD, excluding_patterns, layer_patterns

BITS = (2, 3, 4, 8)
FORMS = ("gptq", "gptq_v2")


@dataclass(frozen=True)
class GPTQ:
    """One of the two versions."""

    name: str
    zero_offset: bool
    """True for v1: zero points are stored minus one."""
    parts: tuple[str, ...] = ("qweight", "qzeros", "scales", "g_idx")
    marker: str = "qweight"
    order_part: str | None = "g_idx"
    config_files: tuple[str, ...] = ("quantize_config.json",)

    def why_not(self, contents: Contents) -> str | None:
        """See `Format.why_not`."""
        if found := contents.where(lambda spec, _: spec.stage in ("vision", "merger")):
            return (
                f"{say(found, 'is', 'are')} in the vision tower, which engines that read GPTQ load "
                "unquantized; leave the tower out, or use compressed-tensors"
            )
        if found := contents.where(lambda _, scheme: scheme.activations != "none"):
            return f"{say(found, 'has', 'have')} {ROUNDED_INPUTS}"
        if found := contents.where(lambda _, scheme: scheme.bits not in BITS):
            bits = contents.schemes[found[0]].bits
            return (
                f"{say(found, 'has', 'have')} {bits} bits; it holds {', '.join(map(str, BITS))}, "
                "compressed-tensors holds 2 to 8"
            )
        if self.zero_offset and (found := contents.where(lambda _, scheme: not scheme.symmetric)):
            return (
                f"{say(found, 'has', 'have')} an asymmetric scheme, and zero points minus one "
                "cannot say 0; use gptq_v2 or compressed-tensors"
            )
        if found := contents.where(
            lambda spec, _: spec.in_features % VALUES or spec.out_features % VALUES
        ):
            return (
                f"{say(found, 'has', 'have')} a width that is no multiple of {VALUES}, which "
                "packing needs; use compressed-tensors"
            )
        return None

    def encode(self, weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
        """See `Format.encode`; scales are fp16 whatever the dtype."""
        bits = weight.scheme.bits
        zero_points = weight.zero_points.t()
        if self.zero_offset:
            if bool((zero_points == 0).any()):
                raise ValueError("a zero point is 0, which this format cannot say; use gptq_v2")
            zero_points = zero_points - 1
        return {
            "qweight": pack(weight.integers.t(), bits),
            "qzeros": pack(zero_points.t(), bits).t().contiguous(),
            "scales": fp16_scales(weight.scales),
            "g_idx": weight.column_groups().to(torch.int32),
        }

    def decode(
        self, tensors: Mapping[str, Tensor], scheme: QuantScheme, name: str
    ) -> QuantizedWeight:
        """See `Format.decode`; a missing `g_idx` means runs of neighbours."""
        bits, qweight = scheme.bits, need(tensors, "qweight", name)
        if qweight.dim() != 2 or qweight.dtype != torch.int32 or qweight.shape[0] % bits:
            raise ValueError(
                f"{name}.qweight is {qweight.dtype} {list(qweight.shape)}; for {bits} bits it must "
                "be int32 and its rows a multiple of them"
            )
        columns, rows = qweight.shape[0] * 32 // bits, qweight.shape[1]
        groups = scheme.groups(columns)
        order: Shapes = {"g_idx": ((columns,), INDICES)} if "g_idx" in tensors else {}
        wanted: Shapes = {
            "qzeros": ((groups, rows * bits // 32), (torch.int32,)),
            "scales": ((groups, rows), FLOATS),
            **order,
        }
        check_parts(tensors, wanted, name)
        zero_points = unpack(tensors["qzeros"].t(), bits)
        if self.zero_offset:
            # Wraps within the width: writers that packed 0 - 1 left all bits set.
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
        """See `Format.settings`."""
        return GPTQSettings.from_config(config)

    def quantization_config(
        self, contents: Contents, file_name: Callable[[str], str]
    ) -> dict[str, Any]:
        """See `Format.quantization_config`: Qwen's keys, then what other engines ask for."""
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

    def stored_bytes(self, spec: LinearSpec, scheme: QuantScheme, dtype: torch.dtype) -> int:
        """See `Format.stored_bytes`."""
        groups = scheme.groups(spec.in_features)
        per_group = spec.out_features * scheme.bits // 8 + spec.out_features * 2
        return spec.weights * scheme.bits // 8 + groups * per_group + spec.in_features * 4

    def bias_dtype(self, stored: torch.dtype) -> torch.dtype:
        """See `Format.bias_dtype`."""
        return torch.float16


def form_of(config: Mapping[str, Any]) -> str:
    """Which version a `quantization_config` names; files without the key are of version 1.

    Raises:
        ValueError: neither.
    """
    form = config.get("checkpoint_format") or config.get("format") or "gptq"
    if form not in FORMS:
        raise ValueError(
            f"quantization_config: checkpoint_format is {form!r}; allowed are {', '.join(FORMS)}"
        )
    return str(form)


@dataclass(frozen=True)
class GPTQSettings:
    """What a GPTQ configuration says: one scheme, and rules that change it for some layers."""

    base: QuantScheme
    rules: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """Keys of `dynamic` with their values."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """See `Format.settings`."""
        for key in ("bits", "group_size"):
            if type(config.get(key)) is not int:
                raise ValueError(
                    f"quantization_config: {key} is {config.get(key)!r}; a number is needed"
                )
        if config.get("pack_dtype", "int32") != "int32":
            raise ValueError(
                f"quantization_config: pack_dtype is {config['pack_dtype']!r}; allowed is int32"
            )
        base = QuantScheme(
            _checked_bits(config["bits"]), config["group_size"], bool(config.get("sym", True))
        )
        rules = tuple((config.get("dynamic") or {}).items())
        for rule, _ in rules:
            try:
                re.compile(rule.removeprefix("+:").removeprefix("-:"))
            except re.error as error:
                raise ValueError(
                    f"quantization_config: dynamic rule {rule!r} is not a valid expression "
                    f"({error})"
                ) from None
        return cls(base, rules)

    def scheme(self, names: Sequence[str]) -> QuantScheme:
        """See `Settings.scheme`: the first rule that matches one of the names decides."""
        for rule, changes in self.rules:
            expression = rule.removeprefix("+:")
            # A rule that leaves layers out says nothing about one that is stored quantized.
            if rule.startswith("-:") or not any(re.match(expression, name) for name in names):
                continue
            return replace(
                self.base,
                bits=_checked_bits(changes.get("bits", self.base.bits)),
                group_size=changes.get("group_size", self.base.group_size),
                symmetric=bool(changes.get("sym", self.base.symmetric)),
            )
        return self.base


def _checked_bits(bits: Any) -> int:
    if bits not in BITS:
        raise ValueError(
            f"quantization_config: bits is {bits!r}; allowed are {', '.join(map(str, BITS))}"
        )
    return int(bits)


def _modules_in_block(contents: Contents) -> list[list[str]]:
    """Quantized layers of a decoder block, grouped by shared input; the head at the end."""
    stage = family_of(contents.config).stage("decoder")
    blocks = stage.blocks(contents.config)
    taps: dict[str, list[str]] = {}
    for linear in stage.linears:
        if any(f"{block}.{linear.name}" in contents.quantized for block in blocks):
            taps.setdefault(linear.tap, []).append(linear.name)
    head = [["lm_head"]] if "lm_head" in contents.quantized else []
    return [*taps.values(), *head]


def _rules(contents: Contents) -> dict[str, dict[str, Any]]:
    """Rules as GPTQModel defined them: `-:` leaves layers out, `+:` gives them another scheme."""
    left_out = excluding_patterns(contents.config, contents.kept)
    if "lm_head" not in contents.quantized and HEAD not in left_out:
        left_out.append(HEAD)
    rules: dict[str, dict[str, Any]] = {f"-:{pattern}": {} for pattern in left_out}
    for scheme, names in list(contents.by_scheme.items())[1:]:
        changes = {"bits": scheme.bits, "group_size": scheme.group_size, "sym": scheme.symmetric}
        for pattern in layer_patterns(contents.config, names, either=contents.kept):
            rules[f"+:{pattern}"] = changes
    return rules
