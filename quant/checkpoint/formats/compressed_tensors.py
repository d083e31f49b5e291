"""compressed-tensors checkpoints (`quant_method: compressed-tensors`).

Weights alone (`pack-quantized`): `weight_packed` int32 [N, K * bits / 32] packed along K,
`weight_scale` [N, G], `weight_shape` int64 [2], and if the scheme is asymmetric `weight_zero_point`
int32 [N * bits / 32, G] packed along N. With int8 activations (`int-quantized`): `weight` int8
[N, K], `weight_scale` [N, G], and `input_scale` [1] if they are static. Integers and zero points
are signed: those of other formats minus 2**(bits - 1). Weights of tables (FP8, NVFP4, MXFP4) are in
`compressed/tables.py`. docs/format.md is normative.

Letters: N = out_features, K = in_features, G = groups per row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....model.families import EMBEDDING, LinearSpec
from ...compressed_weight import CompressedWeight
from ...methods.affine import QuantizedWeight
from ...methods.grids.table_weight import TableWeight
from ...recipe.scheme import QuantScheme, Scheme, TableScheme
from ..safetensors_folder.folder_format import FolderFormat
from .compressed import tables
from .compressed.config import CompressedTensorsSettings, describe
from .contents import Contents, layers_phrase
from .format import (
    FLOATS,
    INDICES,
    check_parts,
    check_symmetric,
    float_tensor,
    group_index,
    integer_scheme,
    integers_of,
    require_part,
)
from .packing import pack_padded, packed_words, unpack_padded

EMBEDDING_BITS = (2, 4, 8)
"""Of a token embedding: no value crosses a word."""


@dataclass(frozen=True)
class CompressedTensors(FolderFormat):
    """All storages of a layer; its scheme determines the one."""

    name: str = "compressed-tensors"
    quant_method: str = "compressed-tensors"
    kinds: tuple[str, ...] = (QuantScheme.kind, TableScheme.kind)
    parts: tuple[str, ...] = (
        "weight_packed",
        "weight",
        "weight_scale",
        "weight_shape",
        "weight_zero_point",
        "weight_g_idx",
        "weight_global_scale",
        "input_scale",
        "input_global_scale",
        "input_zero_point",
    )
    marker: str = "weight_scale"
    order_part: str | None = "weight_g_idx"
    config_files: tuple[str, ...] = ()
    holds_kv_scales: bool = True

    def why_not(self, contents: Contents) -> str | None:
        """See `Format.why_not`."""
        if names := contents.where(lambda spec, _: spec.name in contents.reordered):
            return (
                f"{layers_phrase(names, 'has', 'have')} non-contiguous groups (g_idx), which "
                "compressed-tensors no longer supports; use gptq"
            )
        if names := contents.where(lambda _, s: s.activations != "none" and not s.symmetric):
            return (
                f"{layers_phrase(names, 'has', 'have')} int8 activations and an asymmetric weight, "
                "which no engine supports; make the weight symmetric"
            )
        return _why_no_embedding(contents) or tables.why_not(contents)

    def encode(self, weight: CompressedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
        """See `Format.encode`; scales have `dtype` if that is exact, else a wider one."""
        if isinstance(weight, TableWeight):
            return tables.encode(weight, dtype)
        weight = integers_of(weight)
        scheme = weight.scheme
        if weight.group_index is not None:
            raise ValueError("its groups are not contiguous, which is not supported; use gptq")
        scales = {"weight_scale": float_tensor(weight.scales, dtype)}
        if scheme.activations == "none":
            zero_points = {}
            if not scheme.symmetric:
                packed = pack_padded(weight.zero_points, scheme.bits)
                zero_points = {"weight_zero_point": packed.contiguous()}
            return {
                "weight_packed": pack_padded(weight.integers.t(), scheme.bits).t().contiguous(),
                **scales,
                "weight_shape": torch.tensor(weight.integers.shape, dtype=torch.int64),
                **zero_points,
            }
        if not scheme.symmetric:
            raise ValueError("its weight is asymmetric; int8 activations require a symmetric one")
        signed = (weight.integers.to(torch.int16) - scheme.midpoint).to(torch.int8)
        if scheme.activations == "static":
            if weight.input_scale is None:
                raise ValueError("its activations are static, but it has no input scale; calibrate")
            scales["input_scale"] = float_tensor(weight.input_scale.reshape(1), dtype)
        return {"weight": signed.contiguous(), **scales}

    def decode(self, tensors: Mapping[str, Tensor], scheme: Scheme, name: str) -> CompressedWeight:
        """See `Format.decode`."""
        if isinstance(scheme, TableScheme):
            return tables.decode(tensors, scheme, name)
        scheme = integer_scheme(scheme)
        packed = "weight_packed" in tensors
        integers = _unpacked(tensors, scheme, name) if packed else _integers(tensors, scheme, name)
        rows, columns = integers.shape
        groups = scheme.groups(columns)
        stored = require_part(tensors, "weight_scale", name)
        if stored.numel() == 1 and rows > 1:  # strategy tensor: one scale for the whole matrix
            stored = stored.reshape(1, 1).expand(rows, 1)
        check_parts({"weight_scale": stored}, {"weight_scale": ((rows, groups), FLOATS)}, name)
        order = None
        if "weight_g_idx" in tensors:
            check_parts(tensors, {"weight_g_idx": ((columns,), INDICES)}, name)
            order = group_index(tensors["weight_g_idx"], groups, f"{name}.weight_g_idx")
        weight = QuantizedWeight(
            integers=integers,
            scales=stored.to(torch.float32, copy=True).contiguous(),
            zero_points=_zero_points(tensors, scheme, (rows, groups), name),
            scheme=scheme,
            group_index=order,
            input_scale=_input_scale(tensors, scheme, name),
        )
        check_symmetric(weight, name, "symmetric")
        return weight

    def settings(self, config: Mapping[str, Any]) -> CompressedTensorsSettings:
        """See `FolderFormat.settings`."""
        return CompressedTensorsSettings(config)

    def quantization_config(
        self, contents: Contents, file_name: Callable[[str], str]
    ) -> dict[str, Any]:
        """See `FolderFormat.quantization_config`."""
        return describe(contents, file_name)

    def stored_bytes(self, spec: LinearSpec, scheme: Scheme, dtype: torch.dtype) -> int:
        """See `Format.stored_bytes`."""
        if isinstance(scheme, TableScheme):
            return tables.stored_bytes(spec, scheme, dtype)
        groups = scheme.groups(spec.in_features)
        scales = groups * spec.out_features * dtype.itemsize
        if scheme.activations != "none":
            static = dtype.itemsize if scheme.activations == "static" else 0
            return spec.weights + scales + static
        words = spec.out_features * packed_words(spec.in_features, scheme.bits)
        if not scheme.symmetric:
            words += groups * packed_words(spec.out_features, scheme.bits)
        return 4 * words + scales + 2 * 8

    def bias_dtype(self, stored: torch.dtype) -> torch.dtype:
        """See `Format.bias_dtype`."""
        return stored


def _why_no_embedding(contents: Contents) -> str | None:
    """Return the reason that engines cannot look rows up in the embedding, or None.

    They read rows without zero points, in words of whole values (vLLM,
    `compressed_tensors/compressed_tensors_embedding.py`).
    """
    scheme = contents.schemes.get(EMBEDDING)
    if scheme is None:
        return None
    if not scheme.symmetric:
        return f"{EMBEDDING} has zero points, which engines ignore there; make it symmetric"
    if scheme.bits not in EMBEDDING_BITS:
        return (
            f"{EMBEDDING} has {scheme.bits} bits; engines read embeddings of "
            f"{', '.join(map(str, EMBEDDING_BITS))} bits"
        )
    return None


def _unpacked(tensors: Mapping[str, Tensor], scheme: QuantScheme, name: str) -> Tensor:
    """Return the integers of a pack-quantized layer, uint8 [N, K]."""
    check_parts(tensors, {"weight_shape": ((2,), INDICES)}, name)
    rows, columns = (int(size) for size in tensors["weight_shape"])
    shape = (rows, packed_words(columns, scheme.bits))
    check_parts(tensors, {"weight_packed": (shape, (torch.int32,))}, name)
    return unpack_padded(tensors["weight_packed"].t(), scheme.bits, columns).t().contiguous()


def _integers(tensors: Mapping[str, Tensor], scheme: QuantScheme, name: str) -> Tensor:
    """Return the integers of an int-quantized layer, uint8 [N, K]."""
    stored = require_part(tensors, "weight", name)
    if stored.dim() != 2 or stored.dtype != torch.int8:
        raise ValueError(
            f"{name}.weight is {stored.dtype} {list(stored.shape)}; it must be an int8 matrix, "
            "unless there is weight_packed instead"
        )
    integers = stored.to(torch.int16) + scheme.midpoint
    if int(integers.min()) < 0 or int(integers.max()) > scheme.max_level:
        raise ValueError(
            f"{name}.weight runs from {int(stored.min())} to {int(stored.max())}, which is more "
            f"than {scheme.bits} bits hold"
        )
    return integers.to(torch.uint8)


def _zero_points(
    tensors: Mapping[str, Tensor], scheme: QuantScheme, shape: tuple[int, int], name: str
) -> Tensor:
    """Return the zero points, uint8 [N, G].

    They are stored as packed words (int32) or signed integers (int8); a symmetric scheme may omit
    them.
    """
    rows, groups = shape
    if "weight_zero_point" not in tensors:
        if not scheme.symmetric:
            require_part(tensors, "weight_zero_point", name)
        device = tensors["weight_scale"].device
        return torch.full(shape, scheme.midpoint, dtype=torch.uint8, device=device)
    stored = tensors["weight_zero_point"]
    if stored.dtype == torch.int32:
        words = (packed_words(rows, scheme.bits), groups)
        check_parts(tensors, {"weight_zero_point": (words, (torch.int32,))}, name)
        return unpack_padded(stored, scheme.bits, rows).contiguous()
    check_parts(tensors, {"weight_zero_point": (shape, (torch.int8,))}, name)
    return (stored.to(torch.int16) + scheme.midpoint).to(torch.uint8)


def _input_scale(tensors: Mapping[str, Tensor], scheme: QuantScheme, name: str) -> Tensor | None:
    if "input_zero_point" in tensors and bool(tensors["input_zero_point"].any()):
        raise ValueError(f"{name}.input_zero_point is not 0; allowed: 0 (symmetric activations)")
    if scheme.activations != "static":
        return None
    stored = require_part(tensors, "input_scale", name)
    if stored.numel() != 1 or stored.dtype not in FLOATS or not float(stored) > 0:
        raise ValueError(
            f"{name}.input_scale is {stored.dtype} {list(stored.shape)}; it must be one positive "
            "float"
        )
    return stored.reshape(()).to(torch.float32, copy=True)
