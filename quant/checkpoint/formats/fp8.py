"""FP8 (`quant_method: fp8`): in blocks, as Qwen and DeepSeek publish them, or per tensor.

- In blocks: `weight` E4M3 [N, K] and `weight_scale_inv` float [R, G]: despite the name, the factor
  of a block of `weight_block_size` weights. All layers have one block size, and their inputs are
  rounded to E4M3 with one scale per token and block (`activation_scheme: dynamic`).
- Per tensor, without `weight_block_size`: one factor of the matrix, `weight_scale` or
  `weight_scale_inv`, a scalar or [1]; inputs are rounded with one scale per token, or with the
  scalar `input_scale` (`activation_scheme: static`). As AutoFP8 wrote them and vLLM and
  transformers read them (`quantization/fp8.py` there); read here, not written.

Letters: N = out_features, K = in_features, R and G = rows and columns of the scales.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel
from torch import Tensor

from ....common.validation import Allowed, Integer, parse
from ....model.families import LinearSpec
from ...compressed_weight import CompressedWeight
from ...methods.grids.table_weight import TableWeight
from ...recipe.scheme import Scheme, TableScheme
from ..safetensors_folder.folder_format import FolderFormat
from .compressed import tables
from .contents import Contents, layers_phrase
from .format import CONFIG

SCALES = "weight_scale_inv"
TENSOR_SCALE = "weight_scale"
"""The other name of the factor per tensor."""
BLOCKS = "a list of two whole numbers, at least 1 (rows and columns of a block)"
Size = Annotated[int, Integer(1)]


class FP8Config(BaseModel):
    """Keys of a `quantization_config` that are read."""

    fmt: Literal["e4m3"] = "e4m3"
    activation_scheme: Literal["dynamic", "static"] = "dynamic"
    weight_block_size: Annotated[tuple[Size, Size] | None, Allowed(BLOCKS)] = None

    def scheme(self) -> TableScheme:
        """Return the scheme of all layers.

        Raises:
            ValueError: it is not supported.
        """
        if self.weight_block_size is None:
            return TableScheme("fp8", -1, activations=self.activation_scheme)
        if self.activation_scheme == "static":
            raise ValueError(
                f"{CONFIG}: activation_scheme is 'static'; allowed: dynamic, with weight_block_size"
            )
        rows, columns = self.weight_block_size
        return TableScheme("fp8", columns, rows, "dynamic")


@dataclass(frozen=True)
class FP8Settings:
    """One scheme for all layers."""

    only: TableScheme

    def scheme(self, names: Sequence[str]) -> TableScheme:
        """See `Settings.scheme`."""
        return self.only


@dataclass(frozen=True)
class BlockFP8(FolderFormat):
    """FP8; written in blocks only."""

    name: str = "fp8"
    quant_method: str = "fp8"
    kinds: tuple[str, ...] = (TableScheme.kind,)
    parts: tuple[str, ...] = ("weight", SCALES, TENSOR_SCALE, "input_scale")
    marker: str = SCALES
    other_markers: tuple[str, ...] = (TENSOR_SCALE,)
    order_part: str | None = None
    config_files: tuple[str, ...] = ()

    def why_not(self, contents: Contents) -> str | None:
        """See `Format.why_not`."""
        if names := contents.where(lambda _, scheme: not _is_blocked(scheme)):
            return (
                f"{layers_phrase(names, 'has', 'have')} the scheme "
                f"{contents.schemes[names[0]].label}; fp8 holds blocks of fp8 with dynamic "
                "activations, compressed-tensors holds others"
            )
        if len(contents.by_scheme) > 1:
            labels = ", ".join(scheme.label for scheme in contents.by_scheme)
            return f"the layers have several block sizes ({labels}); use compressed-tensors"
        return None

    def encode(self, weight: CompressedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
        """See `Format.encode`."""
        if not isinstance(weight, TableWeight) or not _is_blocked(weight.scheme):
            raise ValueError(f"its scheme is {weight.scheme.label}; allowed: blocks of fp8")
        tensors = tables.encode(weight, dtype)
        return {"weight": tensors["weight"], SCALES: tensors["weight_scale"]}

    def decode(self, tensors: Mapping[str, Tensor], scheme: Scheme, name: str) -> CompressedWeight:
        """See `Format.decode`."""
        if not isinstance(scheme, TableScheme):
            raise ValueError(f"it is of the kind {scheme.kind}; allowed: {TableScheme.kind}")
        if {SCALES, TENSOR_SCALE} <= tensors.keys():
            raise ValueError(f"{name} has both {SCALES} and {TENSOR_SCALE}; it is damaged")
        renamed = {TENSOR_SCALE if part == SCALES else part: t for part, t in tensors.items()}
        return tables.decode(renamed, scheme, name)

    def settings(self, config: Mapping[str, Any]) -> FP8Settings:
        """See `FolderFormat.settings`."""
        return FP8Settings(parse(FP8Config, config, CONFIG).scheme())

    def quantization_config(
        self, contents: Contents, file_name: Callable[[str], str]
    ) -> dict[str, Any]:
        """See `FolderFormat.quantization_config`."""
        (scheme,) = contents.by_scheme
        assert isinstance(scheme, TableScheme)
        carried = contents.carried_unquantized
        kept = [file_name(name) for name in (*contents.unquantized, *carried)]
        if contents.carries_mtp and not contents.quantizes_carried:
            kept.append("mtp")
        if "lm_head" not in contents.linears:  # tied, but a module of its own in other libraries
            kept.append("lm_head")
        return {
            "quant_method": self.quant_method,
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [scheme.scale_rows, scheme.group_size],
            "modules_to_not_convert": kept,
        }

    def stored_bytes(self, spec: LinearSpec, scheme: Scheme, dtype: torch.dtype) -> int:
        """See `Format.stored_bytes`."""
        assert isinstance(scheme, TableScheme)
        return tables.stored_bytes(spec, scheme, dtype)

    def bias_dtype(self, stored: torch.dtype) -> torch.dtype:
        """See `Format.bias_dtype`."""
        return stored


def _is_blocked(scheme: Scheme) -> bool:
    return (
        isinstance(scheme, TableScheme)
        and scheme.grid == "fp8"
        and scheme.scale_rows > 1
        and scheme.activations == "dynamic"
    )
