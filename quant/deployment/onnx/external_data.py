"""Weights of a graph in a file of their own, as ONNX external data.

Format: "External Data" in onnx's docs/ExternalData.md. A tensor is written when it is added, so
that memory follows the largest tensor. Offsets are multiples of a page, which lets runtimes map the
file.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from onnx import TensorProto
from torch import Tensor

ALIGNMENT = 4096  # bytes
TENSOR_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.uint8: TensorProto.UINT8,
    torch.int64: TensorProto.INT64,
}
"""ONNX element types of torch dtypes."""


class ExternalData:
    """A file to which tensors are appended; a context manager.

    Args:
        path: created; graphs in the same folder refer to it by its name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, name: str, tensor: Tensor) -> TensorProto:
        """Write a tensor, little-endian and row-major, and return the reference to it.

        Args:
            name: of the initializer.
            tensor: on the CPU, of a dtype in `TENSOR_TYPES`, not empty.
        """
        self._file.write(bytes(-self._file.tell() % ALIGNMENT))
        offset = self._file.tell()
        self._file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        proto = TensorProto(
            name=name,
            dims=tensor.shape,
            data_type=TENSOR_TYPES[tensor.dtype],
            data_location=TensorProto.EXTERNAL,
        )
        entries = {"location": self.path.name, "offset": offset, "length": tensor.nbytes}
        for key, value in entries.items():
            proto.external_data.add(key=key, value=str(value))
        return proto
