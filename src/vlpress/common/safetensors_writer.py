"""Writing safetensors files, one tensor in memory at a time.

Layout: https://huggingface.co/docs/safetensors, "Format": eight bytes of header length, a JSON
header padded with blanks, and the tensors in a row, which the header locates.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from .lazy_tensor import STORED_DTYPES, LazyTensor, TensorLike

DTYPE_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()}
ALIGNMENT = 8


def write_tensors(tensors: Mapping[str, TensorLike], path: Path) -> None:
    """Write one file; it is on the disk, not in its cache, when this returns.

    The bytes depend on names and values alone, not on the order in which they are given.

    Raises:
        ValueError: a tensor that was read later is not what it was said to be.
        OSError: the disk is full or cannot be written.
    """
    # Wide types first: all lie aligned then, whatever their number.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    with path.open("wb") as file:
        file.write(_header({name: tensors[name] for name in order}))
        for name in order:
            file.write(_bytes(name, tensors[name]).data)
        file.flush()
        os.fsync(file.fileno())


def _header(tensors: Mapping[str, TensorLike]) -> bytes:
    # One metadata key: readers want to know for which library the file is.
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes(name: str, tensor: TensorLike) -> npt.NDArray[np.uint8]:
    value = tensor
    if isinstance(value, LazyTensor):
        value = value.read()
        if value.dtype != tensor.dtype or tuple(value.shape) != tuple(tensor.shape):
            raise ValueError(
                f"{name} was to be {tuple(tensor.shape)} of {tensor.dtype} and is "
                f"{tuple(value.shape)} of {value.dtype}; its file changed while it was read"
            )
    flat = value.detach().to("cpu").contiguous().reshape(-1)
    found: npt.NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return found
