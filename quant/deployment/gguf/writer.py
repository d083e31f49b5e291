"""Writing a GGUF file with the package gguf, one tensor in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ....common.progress import Update
from .tensors import FileTensor

INSTALL = "GGUF needs the package gguf, which is not installed; pip install 'vlpress[gguf]'"
LONGEST_NAME = 63
"""Characters of the name of a tensor."""
QUANTIZATION_VERSION = 2
"""Of ggml's block types."""
FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "BF16": 32,
    "MXFP4": 38,
}
"""`general.file_type`, which is shown only, by the type of most weights."""


def is_installed() -> bool:
    """Whether the package gguf can be imported."""
    return find_spec("gguf") is not None


def write_gguf(
    path: Path, keys: Mapping[str, Any], tensors: Sequence[FileTensor], update: Update
) -> dict[str, Any]:
    """Write a file.

    Args:
        path: of the new file.
        keys: values by full name, `general.architecture` among them; whole numbers become uint32,
            lists arrays of int32, float32, bool or strings.
        tensors: in the order of the file.
        update: called after each tensor.

    Returns:
        Number and bytes of the tensors by type, the largest type first.

    Raises:
        ValueError: a type does not hold a number of a tensor exactly.
    """
    import gguf

    types = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, keys["general.architecture"])
    for name, value in {**keys, **_general_keys(tensors)}.items():
        if name != "general.architecture":
            _add(writer, name, value)
    for tensor in tensors:
        assert len(tensor.name) <= LONGEST_NAME
        shape = tensor.byte_shape
        size = int(np.prod(shape, dtype=np.int64))
        kind = np.dtype(np.uint8)
        writer.add_tensor_info(tensor.name, shape, kind, size, types[tensor.carrier.name])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, tensor in enumerate(tensors, start=1):
            data = tensor.read().reshape(tensor.byte_shape)
            writer.write_tensor_data(np.ascontiguousarray(data))
            update(done, len(tensors), tensor.name)
    finally:
        writer.close()
    return _totals(tensors)


def _general_keys(tensors: Sequence[FileTensor]) -> dict[str, int]:
    weights: Counter[str] = Counter()
    for tensor in tensors:
        weights[tensor.carrier.name] += int(np.prod(tensor.shape, dtype=np.int64))
    ((most, _),) = weights.most_common(1)
    return {
        "general.file_type": FILE_TYPES[most],
        "general.quantization_version": QUANTIZATION_VERSION,
    }


def _add(writer: Any, name: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, list(value))


def _totals(tensors: Sequence[FileTensor]) -> dict[str, Any]:
    totals: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        entry = totals.setdefault(tensor.carrier.name, {"tensors": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["bytes"] += int(np.prod(tensor.byte_shape, dtype=np.int64))
    return dict(sorted(totals.items(), key=lambda item: -item[1]["bytes"]))
