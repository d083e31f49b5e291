"""AWQ checkpoints (`quant_method: awq`, version `gemm`), the layout of AutoAWQ.

Per layer: `qweight` int32 [K, N / 8] packed along N, `qzeros` int32 [G, N / 8] packed along N,
`scales` fp16 [G, N], `bias` fp16 [N] if the source has one. Slot i of a word, lowest bits first,
holds column `ORDER[i]` of its eight. Zero points are stored unchanged. 4 bits only.

Letters: N = out_features, K = in_features, G = groups per row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import AliasChoices, BaseModel, Field
from torch import Tensor

from ....common.validation import Truthy, parse
from ....model.families import LinearSpec, family_of
from ...compressed_weight import CompressedWeight
from ...methods.affine import QuantizedWeight
from ...recipe.scheme import GroupSize, QuantScheme, Scheme
from ..safetensors_folder.folder_format import FolderFormat
from .contents import Contents, layers_phrase
from .format import (
    CONFIG,
    FLOATS,
    QUANTIZED_INPUTS,
    check_parts,
    check_symmetric,
    fp16_scales,
    integer_scheme,
    integers_of,
    require_part,
)

BITS = 4
SLOTS = 32 // BITS
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Column in each slot of a word: AutoAWQ's kernels unpack even and odd columns in two halves."""


@dataclass(frozen=True)
class AWQ(FolderFormat):
    """AutoAWQ's layout `gemm`, the only one that writers still produce."""

    name: str = "awq"
    quant_method: str = "awq"
    kinds: tuple[str, ...] = (QuantScheme.kind,)
    parts: tuple[str, ...] = ("qweight", "qzeros", "scales")
    marker: str = "qweight"
    order_part: str | None = None
    config_files: tuple[str, ...] = ()

    def why_not(self, contents: Contents) -> str | None:
        """See `Format.why_not`."""
        if names := contents.where(lambda spec, _: spec.part != "decoder"):
            return (
                f"{layers_phrase(names, 'is', 'are')} outside the decoder, where engines that read "
                "AWQ do not support quantized layers; leave it out, or use compressed-tensors"
            )
        if names := contents.where(lambda _, scheme: scheme.activations != "none"):
            return f"{layers_phrase(names, 'has', 'have')} {QUANTIZED_INPUTS}"
        if names := contents.where(lambda _, scheme: scheme.bits != BITS):
            bits = contents.schemes[names[0]].bits
            return f"{layers_phrase(names, 'has', 'have')} {bits} bits; it holds {BITS} only"
        if len(contents.by_scheme) > 1:
            labels = ", ".join(sorted(scheme.label for scheme in contents.by_scheme))
            return f"it holds one scheme for all layers, and there are {labels}"
        if names := contents.where(lambda spec, _: spec.name in contents.reordered):
            return (
                f"{layers_phrase(names, 'has', 'have')} non-contiguous groups (g_idx), which AWQ "
                "cannot represent; use gptq"
            )
        if names := contents.where(lambda spec, _: spec.out_features % SLOTS):
            return (
                f"{layers_phrase(names, 'has', 'have')} out_features that are not a multiple of "
                f"{SLOTS}, as packing requires; use compressed-tensors"
            )
        return None

    def encode(self, weight: CompressedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
        """See `Format.encode`; scales are fp16 for every `dtype`."""
        weight = integers_of(weight)
        if weight.group_index is not None:
            raise ValueError("its groups are not contiguous, which AWQ cannot represent; use gptq")
        return {
            "qweight": pack_columns(weight.integers.t()),
            "qzeros": pack_columns(weight.zero_points.t()),
            "scales": fp16_scales(weight.scales),
        }

    def decode(self, tensors: Mapping[str, Tensor], scheme: Scheme, name: str) -> QuantizedWeight:
        """See `Format.decode`."""
        qweight = require_part(tensors, "qweight", name)
        if qweight.dim() != 2 or qweight.dtype != torch.int32:
            raise ValueError(
                f"{name}.qweight is {qweight.dtype} {list(qweight.shape)}; it must be an int32 "
                "matrix"
            )
        columns, words = qweight.shape
        groups = scheme.groups(columns)
        expected = {
            "qzeros": ((groups, words), (torch.int32,)),
            "scales": ((groups, words * SLOTS), FLOATS),
        }
        check_parts(tensors, expected, name)
        weight = QuantizedWeight(
            integers=unpack_columns(qweight).t().contiguous(),
            scales=tensors["scales"].t().to(torch.float32, copy=True).contiguous(),
            zero_points=unpack_columns(tensors["qzeros"]).t().contiguous(),
            scheme=integer_scheme(scheme),
        )
        check_symmetric(weight, name, "symmetric or zero_point")
        return weight

    def settings(self, config: Mapping[str, Any]) -> "AWQSettings":
        """See `FolderFormat.settings`."""
        version = config.get("version") or config.get("checkpoint_format") or config.get("format")
        if str(version or "gemm").lower() != "gemm":
            raise ValueError(
                f"{CONFIG}: version is {version!r}; allowed: gemm, the only layout that is not "
                "specific to one kernel"
            )
        return AWQSettings(parse(AWQConfig, config, CONFIG).scheme())

    def quantization_config(
        self, contents: Contents, file_name: Callable[[str], str]
    ) -> dict[str, Any]:
        """See `FolderFormat.quantization_config`: AutoAWQ's keys, and `symmetric`.

        Zero points are stored for symmetric schemes too, and `zero_point` is true for both: the
        kernels read them always. `symmetric` distinguishes the two; other readers ignore it.
        """
        (scheme,) = contents.by_scheme
        return {
            "quant_method": "awq",
            "bits": scheme.bits,
            "group_size": scheme.group_size,
            "zero_point": True,
            "symmetric": scheme.symmetric,
            "version": "gemm",
            "modules_to_not_convert": _not_converted(contents),
        }

    def stored_bytes(self, spec: LinearSpec, scheme: Scheme, dtype: torch.dtype) -> int:
        """See `Format.stored_bytes`."""
        groups = scheme.groups(spec.in_features)
        return spec.weights // 2 + groups * (spec.out_features // 2 + spec.out_features * 2)

    def bias_dtype(self, stored: torch.dtype) -> torch.dtype:
        """See `Format.bias_dtype`."""
        return torch.float16


class AWQConfig(BaseModel):
    """Keys of a `quantization_config` that are read; AutoAWQ's own file has the second names."""

    bits: Literal[4] = Field(validation_alias=AliasChoices("bits", "w_bit"))
    group_size: GroupSize = Field(validation_alias=AliasChoices("group_size", "q_group_size"))
    zero_point: Truthy = True
    symmetric: Any = None

    def scheme(self) -> QuantScheme:
        """Return the scheme of all layers."""
        # Not `sym`: libraries that share their configuration with GPTQ set it to true for all.
        symmetric = not self.zero_point or self.symmetric is True
        return QuantScheme(self.bits, self.group_size, symmetric)


@dataclass(frozen=True)
class AWQSettings:
    """Scheme by an AWQ configuration: one for all layers."""

    base: QuantScheme

    def scheme(self, names: Sequence[str]) -> QuantScheme:
        """See `Settings.scheme`."""
        return self.base


def pack_columns(values: Tensor) -> Tensor:
    """Pack 4-bit values along the second dimension in AWQ's order.

    Args:
        values: integers [R, C] from 0 to 15; C a multiple of 8.

    Returns:
        int32 [R, C / 8].

    Raises:
        ValueError: C is not a multiple of 8, or a value is out of range.

    Example:
        >>> hex(int(pack_columns(torch.arange(8)[None])[0, 0]) & 0xFFFFFFFF)
        '0x75316420'
    """
    rows, columns = values.shape
    if columns % SLOTS:
        raise ValueError(f"cannot pack {columns} columns: the number must be a multiple of {SLOTS}")
    if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < 2**BITS:
        raise ValueError(
            f"values from {int(values.min())} to {int(values.max())} do not fit {BITS} unsigned "
            "bits"
        )
    slots = values.reshape(rows, columns // SLOTS, SLOTS).to(torch.int64)[..., list(ORDER)]
    shifts = torch.arange(0, 32, BITS, device=values.device)
    words = (slots << shifts).sum(dim=-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack_columns(words: Tensor) -> Tensor:
    """Unpack the words of `pack_columns`: uint8 [R, 8 * W] from int32 [R, W]."""
    shifts = torch.arange(0, 32, BITS, device=words.device, dtype=torch.int32)
    slots = (words[..., None] >> shifts) & (2**BITS - 1)
    values = torch.empty_like(slots)
    values[..., list(ORDER)] = slots
    return values.flatten(1).to(torch.uint8)


def _not_converted(contents: Contents) -> list[str]:
    """Return substrings of the names of unquantized layers.

    Engines match them anywhere in a name, or at its start or end only.
    """
    family = family_of(contents.config)
    stage = family.decoder
    unquantized = set(contents.unquantized)
    members = [name for linear in stage.linears for name in linear.names(contents.config)]
    members += [kept.name for kept in stage.kept]
    layers = [
        f"{block}.{name}".removeprefix("model.")
        for block in stage.blocks(contents.config)
        for name in members
        if f"{block}.{name}" in unquantized
    ]
    towers = [name for module in family.tower_modules for name in (module, f"model.{module}")]
    mtp = ["mtp", *contents.carried_unquantized] if contents.carries_mtp else []
    return [*towers, "lm_head", *mtp, *layers]
