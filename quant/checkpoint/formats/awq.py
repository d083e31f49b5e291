"""AWQ checkpoints (`quant_method: awq`, version `gemm`), the layout of AutoAWQ.

Per layer: `qweight` int32 [K, N / 8] packed along N, `qzeros` int32 [G, N / 8] likewise, `scales`
fp16 [G, N], `bias` fp16 [N] if the source has one. Slot i of a word, lowest bits first, holds
column `ORDER[i]` of its eight. Zero points are stored as they are. 4 bits only.

Letters: N = out_features, K = in_features, G = groups per row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....model.families import LinearSpec, family_of
from ...methods.affine import QuantizedWeight
from ...recipe.scheme import QuantScheme
from .format import (
    FLOATS,
    ROUNDED_INPUTS,
    Contents,
    check_parts,
    check_symmetric,
    fp16_scales,
    need,
    say,
)

BITS = 4
SLOTS = 32 // BITS
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class AWQ:
    """The one layout that is written today."""

    name: str = "awq"
    parts: tuple[str, ...] = ("qweight", "qzeros", "scales")
    marker: str = "qweight"
    order_part: str | None = None
    config_files: tuple[str, ...] = ()

    def why_not(self, contents: Contents) -> str | None:
        """See `Format.why_not`."""
        if found := contents.where(lambda spec, _: spec.stage != "decoder"):
            return (
                f"{say(found, 'is', 'are')} outside the decoder, where engines that read AWQ take "
                "nothing quantized; leave it out, or use compressed-tensors"
            )
        if found := contents.where(lambda _, scheme: scheme.activations != "none"):
            return f"{say(found, 'has', 'have')} {ROUNDED_INPUTS}"
        if found := contents.where(lambda _, scheme: scheme.bits != BITS):
            bits = contents.schemes[found[0]].bits
            return f"{say(found, 'has', 'have')} {bits} bits; it holds {BITS} only"
        if len(contents.by_scheme) > 1:
            labels = ", ".join(sorted(scheme.label for scheme in contents.by_scheme))
            return f"it holds one scheme for all layers, and there are {labels}"
        if found := contents.where(lambda spec, _: spec.name in contents.reordered):
            return (
                f"{say(found, 'has', 'have')} groups that are no runs of neighbours (g_idx), for "
                "which it has no place; use gptq"
            )
        if found := contents.where(lambda spec, _: spec.out_features % SLOTS):
            return (
                f"{say(found, 'has', 'have')} out_features that are no multiple of {SLOTS}, which "
                "packing needs; use compressed-tensors"
            )
        return None

    def encode(self, weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
        """See `Format.encode`; scales are fp16 whatever the dtype."""
        if weight.group_index is not None:
            raise ValueError("its groups are no runs of neighbours, for which AWQ has no place")
        return {
            "qweight": pack_columns(weight.integers.t()),
            "qzeros": pack_columns(weight.zero_points.t()),
            "scales": fp16_scales(weight.scales),
        }

    def decode(
        self, tensors: Mapping[str, Tensor], scheme: QuantScheme, name: str
    ) -> QuantizedWeight:
        """See `Format.decode`."""
        qweight = need(tensors, "qweight", name)
        if qweight.dim() != 2 or qweight.dtype != torch.int32:
            raise ValueError(
                f"{name}.qweight is {qweight.dtype} {list(qweight.shape)}; it must be an int32 "
                "matrix"
            )
        columns, words = qweight.shape
        groups = scheme.groups(columns)
        wanted = {
            "qzeros": ((groups, words), (torch.int32,)),
            "scales": ((groups, words * SLOTS), FLOATS),
        }
        check_parts(tensors, wanted, name)
        weight = QuantizedWeight(
            integers=unpack_columns(qweight).t().contiguous(),
            scales=tensors["scales"].t().to(torch.float32, copy=True).contiguous(),
            zero_points=unpack_columns(tensors["qzeros"]).t().contiguous(),
            scheme=scheme,
        )
        check_symmetric(weight, name, "symmetric or zero_point")
        return weight

    def settings(self, config: Mapping[str, Any]) -> "AWQSettings":
        """See `Format.settings`; AutoAWQ's own file calls bits `w_bit` and the group otherwise."""
        version = config.get("version") or config.get("checkpoint_format") or config.get("format")
        if str(version or "gemm").lower() != "gemm":
            raise ValueError(
                f"quantization_config: version is {version!r}; allowed is gemm, the only layout "
                "that is not made for one kernel"
            )
        bits = config.get("bits", config.get("w_bit"))
        group_size = config.get("group_size", config.get("q_group_size"))
        if bits != BITS:
            raise ValueError(f"quantization_config: bits is {bits!r}; allowed is {BITS}")
        if type(group_size) is not int:
            raise ValueError(
                f"quantization_config: group_size is {group_size!r}; a number is needed"
            )
        # Not `sym`: libraries that share their configuration with GPTQ write it true for all.
        symmetric = not config.get("zero_point", True) or config.get("symmetric") is True
        return AWQSettings(QuantScheme(BITS, group_size, symmetric))

    def quantization_config(
        self, contents: Contents, file_name: Callable[[str], str]
    ) -> dict[str, Any]:
        """See `Format.quantization_config`: AutoAWQ's keys, and `symmetric`.

        Zero points are stored for symmetric schemes too, and `zero_point` is true for both: that is
        what kernels are there for. `symmetric` tells them apart; other readers pass it over.
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

    def stored_bytes(self, spec: LinearSpec, scheme: QuantScheme, dtype: torch.dtype) -> int:
        """See `Format.stored_bytes`."""
        groups = scheme.groups(spec.in_features)
        return spec.weights // 2 + groups * (spec.out_features // 2 + spec.out_features * 2)

    def bias_dtype(self, stored: torch.dtype) -> torch.dtype:
        """See `Format.bias_dtype`."""
        return torch.float16


@dataclass(frozen=True)
class AWQSettings:
    """What an AWQ configuration says: one scheme."""

    base: QuantScheme

    def scheme(self, names: Sequence[str]) -> QuantScheme:
        """See `Settings.scheme`."""
        return self.base


def pack_columns(values: Tensor) -> Tensor:
    """Pack 4-bit values along the second dimension in AWQ's order.

    Args:
        values: integer ``[R, C]`` with entries 0 to 15; C a multiple of 8.

    Returns:
        int32 ``[R, C / 8]``.

    Raises:
        ValueError: C is not a multiple of 8, or a value does not fit.

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
    """Undo `pack_columns`: uint8 ``[R, 8 * W]`` from int32 ``[R, W]``."""
    shifts = torch.arange(0, 32, BITS, device=words.device, dtype=torch.int32)
    slots = (words[..., None] >> shifts) & (2**BITS - 1)
    values = torch.empty_like(slots)
    values[..., list(ORDER)] = slots
    return values.flatten(1).to(torch.uint8)


def _not_converted(contents: Contents) -> list[str]:
    """Parts of names: engines look for them anywhere, or at the start or end of a name."""
    stage = family_of(contents.config).stage("decoder")
    kept = set(contents.kept)
    layers = [
        f"{block}.{linear.name}".removeprefix("model.")
        for block in stage.blocks(contents.config)
        for linear in stage.linears
        if f"{block}.{linear.name}" in kept
    ]
    return ["visual", "model.visual", "lm_head", *layers]
