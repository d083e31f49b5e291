"""Tensors of a GGUF file: name, type and shape first, the bytes when they are written.

Only one tensor is in memory at a time. Shapes are those of torch; GGUF lists dimensions in the
reverse order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...recipe.scheme import Scheme
from ..source import ExportSource
from .carriers import Q4_1, Bytes, Carrier, choose_carrier, encode, fits_q4_1, may_fit_q4_1

FloatType = Literal["F32", "F16", "BF16"]
FLOAT_CARRIERS: dict[FloatType, Carrier] = {
    "F32": Carrier("F32", 1, 4),
    "F16": Carrier("F16", 1, 2),
    "BF16": Carrier("BF16", 1, 2),
}
_DTYPES: dict[FloatType, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_STORED: dict[torch.dtype, FloatType] = {dtype: name for name, dtype in _DTYPES.items()}

Change = Callable[[Tensor], Tensor]
"""Function of a float32 tensor."""


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a GGUF file."""

    name: str
    carrier: Carrier
    shape: tuple[int, ...]
    read: Callable[[], Bytes]
    """Reads the bytes, uint8 of `byte_shape`. Raises `ValueError` if the type does not hold a
    number exactly."""

    @property
    def byte_shape(self) -> tuple[int, ...]:
        """Shape of its bytes: the last dimension counts the bytes of a row."""
        return (*self.shape[:-1], self.carrier.row_bytes(self.shape[-1]))

    def with_rows(self, name: str, rows: NDArray[np.int64]) -> FileTensor:
        """Return some rows of the matrix, or elements of the vector, as a tensor."""
        shape = (len(rows), *self.shape[1:])
        return replace(
            self, name=name, shape=shape, read=lambda: self.read().reshape(self.shape[0], -1)[rows]
        )

    def with_columns(self, columns: NDArray[np.int64]) -> FileTensor:
        """Return the matrix with its columns in another order, which keeps blocks whole.

        Raises:
            ValueError: the order divides a block.
        """
        block = self.carrier.block
        blocks = columns.reshape(-1, block)
        if (blocks != blocks[:, :1] + np.arange(block)).any() or (blocks[:, 0] % block).any():
            raise ValueError(
                f"{self.name}: llama.cpp has its input features in another order, which divides "
                f"the blocks of {block} weights of {self.carrier.name}; keep the layer in float"
            )
        order = blocks[:, 0] // block

        def read() -> Bytes:
            rows = self.read()
            return rows.reshape(len(rows), -1, self.carrier.nbytes)[:, order].reshape(rows.shape)

        return replace(self, read=read)


def float_tensor(
    source: ExportSource, stored: str, name: str, *, change: Change | None = None
) -> FileTensor:
    """Return a float tensor of the checkpoint in F32.

    Args:
        source: the checkpoint.
        stored: canonical name.
        name: in the file.
        change: applied in float32.
    """
    shape = source.reader.shape(stored)
    if change is not None:  # its shape, without reading the tensor
        shape = tuple(change(torch.empty(shape, device="meta")).shape)

    def read() -> Bytes:
        values = source.tensor(stored).float()
        return float_bytes(values if change is None else change(values), "F32", stored)

    return FileTensor(name, FLOAT_CARRIERS["F32"], shape, read)


def layer_tensor(
    source: ExportSource, layers: Sequence[str], name: str, float_type: FloatType | None
) -> FileTensor:
    """Return the weight of a linear layer, or of the experts that share a tensor.

    Args:
        source: the checkpoint.
        layers: the layer, or that of each expert in their order, which are stacked.
        name: in the file.
        float_type: of a weight that is not quantized; None: as stored.

    Raises:
        ValueError: no type carries the weights; see `why_not_layers`.
    """
    if reason := why_not_layers(source, layers):
        raise ValueError(reason)
    spec, type = source.layers[layers[0]], float_type or _stored_type(source, layers[0])
    schemes = _schemes(source, layers)
    carrier = FLOAT_CARRIERS[type]
    if schemes:
        chosen = choose_carrier(schemes, spec.in_features)
        assert isinstance(chosen, Carrier)
        carrier = chosen
        if len(layers) == 1 and may_fit_q4_1(schemes[0]):
            weight = source.weight(layers[0])
            assert not isinstance(weight, Tensor)
            carrier = Q4_1 if fits_q4_1(weight) else chosen

    def read_one(layer: str) -> Bytes:
        weight = source.weight(layer)
        if isinstance(weight, Tensor):
            return float_bytes(weight, type, f"{layer}.weight")
        try:
            return encode(weight, carrier)
        except ValueError as error:
            raise ValueError(f"{layer}: {error}") from None

    matrix = (spec.out_features, spec.in_features)
    if spec.slice is None:
        return FileTensor(name, carrier, matrix, lambda: read_one(layers[0]))

    def read_stacked() -> Bytes:
        rows = spec.out_features, carrier.row_bytes(spec.in_features)
        stacked = np.empty((len(layers), *rows), np.uint8)
        for index, layer in enumerate(layers):
            stacked[index] = read_one(layer)
        return stacked

    return FileTensor(name, carrier, (len(layers), *matrix), read_stacked)


def why_not_layers(source: ExportSource, layers: Sequence[str]) -> str | None:
    """Return why no type carries the layers of one tensor; None if one does."""
    schemes = _schemes(source, layers)
    if not schemes:
        return None
    kept = next((layer for layer in layers if layer not in source.schemes), None)
    if kept is not None:
        return (
            f"{layers[0]} and other experts are quantized, {kept} is not, and GGUF has one type "
            "for all experts of a layer; quantize all of them or none"
        )
    chosen = choose_carrier(schemes, source.layers[layers[0]].in_features)
    return None if isinstance(chosen, Carrier) else f"{layers[0]}: {chosen}"


def float_bytes(tensor: Tensor, type: FloatType, name: str) -> Bytes:
    """Convert a float tensor to a type that holds it exactly, uint8 `[..., bytes of a row]`.

    Raises:
        ValueError: the type does not hold a value.
    """
    converted = tensor.to(_DTYPES[type])
    if converted.dtype != tensor.dtype and not torch.equal(converted.float(), tensor.float()):
        raise ValueError(
            f"{name}: {type} does not hold all of its values; leave --float-type out, or use f32"
        )
    raw: Bytes = converted.contiguous().view(torch.uint8).numpy()
    return raw


def _schemes(source: ExportSource, layers: Sequence[str]) -> list[Scheme]:
    """Return the different schemes of the quantized ones of some layers."""
    schemes = [source.schemes[layer] for layer in layers if layer in source.schemes]
    return [scheme for index, scheme in enumerate(schemes) if scheme not in schemes[:index]]


def _stored_type(source: ExportSource, layer: str) -> FloatType:
    """Return the type of a float layer as stored; of a quantized one, F32."""
    if layer in source.schemes:
        return "F32"
    return _STORED[source.reader.dtype(source.float_name(layer))]
