"""compressed-tensors layers whose weights are levels of a table: FP8, NVFP4 and MXFP4.

- `float-quantized`: `weight` E4M3 [N, K], `weight_scale` float [R, G]; with static activations
  `input_scale` [1].
- `nvfp4-pack-quantized`: `weight_packed` uint8 [N, K / 2] (the first of two codes is the low half),
  `weight_scale` E4M3 [N, G], `weight_global_scale` float32 [1]; with activations
  `input_global_scale` float32 [1].
- `mxfp4-pack-quantized`: `weight_packed`, `weight_scale` uint8 [N, G] (exponents plus 127).

Letters: N = out_features, K = in_features, R and G = rows and columns of the scales.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .....model.families import LinearSpec
from ....methods.grids.group_scales import E8M0_BIAS
from ....methods.grids.levels import code_to_index, index_to_code
from ....methods.grids.table_weight import TableWeight
from ....recipe.grids import ScaleForm
from ....recipe.scheme import TableScheme
from ..contents import Contents, layers_phrase
from ..format import FLOATS, check_parts, float_tensor, require_part

E4M3 = torch.float8_e4m3fn
HALF = 4  # bits of a packed code


@dataclass(frozen=True)
class Storage:
    """A storage by the form of the scales."""

    name: str
    """`format` in the configuration."""
    write_scales: Callable[[Tensor, torch.dtype], Tensor]
    """Converts stored scales, float32, to the tensor in the file; gets the model's dtype too."""
    read_scales: Callable[[Tensor], Tensor]
    """Converts it back to float32."""
    scale_dtypes: tuple[torch.dtype, ...]


def _powers(exponents: Tensor) -> Tensor:
    return torch.ldexp(torch.ones(exponents.shape), exponents.cpu().int() - E8M0_BIAS)


STORAGES: Mapping[ScaleForm, Storage] = {
    "float": Storage(
        "float-quantized", float_tensor, lambda stored: stored.to(torch.float32, copy=True), FLOATS
    ),
    "e4m3": Storage(
        "nvfp4-pack-quantized",
        lambda scales, _: scales.to(E4M3),
        lambda stored: stored.float(),
        (E4M3,),
    ),
    "e8m0": Storage(
        "mxfp4-pack-quantized",
        lambda scales, _: (torch.frexp(scales).exponent - 1 + E8M0_BIAS).to(torch.uint8),
        lambda stored: _powers(stored).to(stored.device),
        (torch.uint8,),
    ),
}


def why_not(contents: Contents) -> str | None:
    """Return the reason that layers of tables cannot be held, or None."""

    def where(condition: Callable[[TableScheme], object]) -> list[str]:
        return contents.where(lambda _, s: isinstance(s, TableScheme) and condition(s))

    if names := where(lambda scheme: scheme.table.unread):
        scheme = contents.schemes[names[0]]
        assert isinstance(scheme, TableScheme)
        return f"{layers_phrase(names, 'has', 'have')} grid {scheme.grid}: {scheme.table.unread}"
    if names := where(lambda s: s.grid == "fp8" and s.group_size != -1 and s.scale_rows == 1):
        return (
            f"{layers_phrase(names, 'has', 'have')} fp8 weights in groups of a row, which no "
            "engine reads; use group_size -1, or blocks (scale_rows)"
        )
    return None


def encode(weight: TableWeight, dtype: torch.dtype) -> dict[str, Tensor]:
    """See `Format.encode`."""
    scheme, storage = weight.scheme, STORAGES[weight.scheme.table.scale_form]
    if scheme.table.unread:
        raise ValueError(f"it has the grid {scheme.grid}: {scheme.table.unread}")
    if scheme.calibrates_input and weight.input_scale is None:
        raise ValueError("its activations need a scale, which it does not have; calibrate")
    codes = index_to_code(weight.indices, scheme.table)
    tensors = {"weight_scale": storage.write_scales(weight.scales, dtype)}
    if weight.divisor is None and scheme.bits == 8:
        tensors = {"weight": codes.view(E4M3), **tensors}
    else:
        packed = codes[:, 0::2] | (codes[:, 1::2] << HALF)
        tensors = {"weight_packed": packed.contiguous(), **tensors}
    if weight.divisor is not None:
        tensors["weight_global_scale"] = weight.divisor.reshape(1).clone()
    if weight.input_scale is not None:
        if scheme.activations == "static":
            tensors["input_scale"] = float_tensor(weight.input_scale.reshape(1), dtype)
        else:
            tensors["input_global_scale"] = weight.input_scale.reshape(1).clone()
    return tensors


def decode(tensors: Mapping[str, Tensor], scheme: TableScheme, name: str) -> TableWeight:
    """See `Format.decode`."""
    storage = STORAGES[scheme.table.scale_form]
    codes = _codes(tensors, scheme, name)
    shape = scheme.scale_shape(*codes.shape)
    stored = require_part(tensors, "weight_scale", name)
    if stored.numel() == 1 and storage.name == "float-quantized":  # strategy tensor
        stored = stored.reshape(1, 1).expand(shape)
    check_parts({"weight_scale": stored}, {"weight_scale": (shape, storage.scale_dtypes)}, name)
    scales = storage.read_scales(stored).contiguous()
    if not bool(((scales > 0) & scales.isfinite()).all()):
        raise ValueError(f"{name}.weight_scale has a scale that is not positive; it is damaged")
    divisor = None
    if scheme.table.scale_form == "e4m3":
        divisor = _scalar(tensors, "weight_global_scale", name)
    input_scale = None
    if scheme.calibrates_input:
        part = "input_scale" if scheme.activations == "static" else "input_global_scale"
        input_scale = _scalar(tensors, part, name)
    indices = code_to_index(codes, scheme.table, name)
    return TableWeight(indices, scales, scheme, divisor, input_scale)


def stored_bytes(spec: LinearSpec, scheme: TableScheme, dtype: torch.dtype) -> int:
    """See `Format.stored_bytes`; of a grid that no format holds, the bytes that it would take."""
    rows, groups = scheme.scale_shape(spec.out_features, spec.in_features)
    form = scheme.table.scale_form
    scale = dtype.itemsize if form == "float" else 1
    total = spec.weights * scheme.bits // 8 + rows * groups * scale
    if form == "e4m3":
        total += 4
    if scheme.calibrates_input:
        total += dtype.itemsize if scheme.activations == "static" else 4
    return total


def _codes(tensors: Mapping[str, Tensor], scheme: TableScheme, name: str) -> Tensor:
    """Return the codes, uint8 [N, K]."""
    if scheme.bits == 8:
        stored = require_part(tensors, "weight", name)
        if stored.dim() != 2 or stored.dtype != E4M3:
            raise ValueError(
                f"{name}.weight is {stored.dtype} {list(stored.shape)}; expected a matrix of {E4M3}"
            )
        return stored.view(torch.uint8)
    packed = require_part(tensors, "weight_packed", name)
    if packed.dim() != 2 or packed.dtype != torch.uint8:
        raise ValueError(
            f"{name}.weight_packed is {packed.dtype} {list(packed.shape)}; expected a matrix of "
            f"{torch.uint8}"
        )
    return torch.stack((packed & 15, packed >> HALF), dim=-1).flatten(1)


def _scalar(tensors: Mapping[str, Tensor], part: str, name: str) -> Tensor:
    stored = require_part(tensors, part, name)
    positive = stored.numel() == 1 and stored.dtype in FLOATS and 0 < float(stored) < float("inf")
    if not positive:
        raise ValueError(
            f"{name}.{part} is {stored.dtype} {list(stored.shape)}; it must be one positive float"
        )
    return stored.reshape(()).to(torch.float32, copy=True)
