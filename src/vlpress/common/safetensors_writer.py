"""Write safetensors files with one lazy tensor in memory at a time.

Layout (https://huggingface.co/docs/safetensors, "Format"): eight bytes of header length, a JSON
header padded with spaces, and the tensors one after the other at the offsets in the header.
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
    """Write one safetensors file and flush it to disk.

    The bytes depend on names and values only, not on the order of `tensors`.

    Args:
        tensors: by name; lazy ones are loaded one at a time.
        path: file to create or replace.

    Raises:
        ValueError: a lazy tensor has another dtype or shape than it declared.
        OSError: the disk is full or cannot be written.
    """
    # Wide dtypes first, so that every tensor is aligned to its element size.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    with path.open("wb") as file:
        file.write(_header({name: tensors[name] for name in order}))
        for name in order:
            file.write(_load_bytes(name, tensors[name]).data)
        file.flush()
        os.fsync(file.fileno())


def _header(tensors: Mapping[str, TensorLike]) -> bytes:
    # transformers requires the `format` key.
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


def _load_bytes(name: str, tensor: TensorLike) -> npt.NDArray[np.uint8]:
    value = tensor
    if isinstance(value, LazyTensor):
        value = value.read()
        if value.dtype != tensor.dtype or tuple(value.shape) != tuple(tensor.shape):
            raise ValueError(
                f"{name}: expected {tuple(tensor.shape)} of {tensor.dtype}, got "
                f"{tuple(value.shape)} of {value.dtype}; its file changed while it was read"
            )
    flat = value.detach().to("cpu").contiguous().reshape(-1)
    data: npt.NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return data
