"""Quantize a GGUF file with llama.cpp, with and without an importance matrix.

python llamacpp_quantizer.py TEXT.gguf IMATRIX.gguf SCRATCH OUT.json

Runs in the environment of llama.cpp, see `with_llamacpp.py`. The errors of the two results are sums
over all tensors of squared errors, weighted by the mean squares of the importance matrix.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Collection
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from numpy.typing import NDArray

SUMS, COUNTS = ".in_sum2", ".counts"


def main() -> None:
    """Quantize twice, then write the errors."""
    text, matrix, scratch, out = map(Path, sys.argv[1:])
    importance = read_importance(matrix)
    llama_cpp.llama_backend_init()
    original = read_weights(text, importance)
    errors = {}
    for name, given in (("plain", {}), ("weighted", importance)):
        quantized = scratch / f"{name}.gguf"
        quantize(text, quantized, given)
        weights = read_weights(quantized, importance)
        errors[name] = sum(
            float(((weights[each] - original[each]) ** 2 * importance[each]).sum())
            for each in importance
        )
    reader = gguf.GGUFReader(scratch / "plain.gguf")
    used = {each.tensor_type.name for each in reader.tensors if each.name in importance}
    result = {**errors, "tensors": len(importance), "types": sorted(used)}
    out.write_text(json.dumps(result), encoding="utf-8")


def read_importance(path: Path) -> dict[str, NDArray[np.float32]]:
    """Mean squares of the inputs of every tensor, `[K]`."""
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    return {
        name.removesuffix(SUMS): (sums / tensors[name.removesuffix(SUMS) + COUNTS])[0]
        for name, sums in tensors.items()
        if name.endswith(SUMS)
    }


def read_weights(path: Path, names: Collection[str]) -> dict[str, NDArray[np.float32]]:
    """Weights of some tensors in float32, `[N, K]`."""
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
        if tensor.name in names
    }


def quantize(source: Path, out: Path, importance: dict[str, NDArray[np.float32]]) -> None:
    """Quantize all linear layers to Q4_K."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = 2
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S
    parameters.pure = True
    parameters.token_embedding_type = gguf.GGMLQuantizationType.BF16
    entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    kept = [np.ascontiguousarray(values, np.float32) for values in importance.values()]
    for entry, name, values in zip(entries, importance, kept, strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if importance:
        parameters.imatrix = ctypes.cast(
            entries, ctypes.POINTER(llama_cpp.llama_model_imatrix_data)
        )
    files = str(source).encode(), str(out).encode()
    if llama_cpp.llama_model_quantize(*files, ctypes.byref(parameters)) != 0:
        raise ValueError(f"llama.cpp could not quantize {source}")


if __name__ == "__main__":
    main()
