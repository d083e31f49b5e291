"""A float checkpoint of the weights that a quantized model computes with.

For grids that no checkpoint format holds, so that their scores can be evaluated as well. Valid for
weight-only quantization: the layers of such grids multiply by the weight in the model's dtype.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import save_file

from vlpress.model.checkpoint import CheckpointReader
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.runtime.compressed_linear import CompressedLinear
from vlpress.quant.targets import compressed_layers

WEIGHTS = "model.safetensors"


def save_dequantized(model: QwenVL, source: Path, folder: Path) -> None:
    """Write the checkpoint; a folder that exists is replaced.

    Args:
        model: with quantized layers that do not round their inputs.
        source: the checkpoint that it was made from, with its weights in one file.
        folder: to be written.

    Raises:
        ValueError: a layer rounds its inputs.
    """
    reader = CheckpointReader(source)
    tensors = {reader.source_name(name): reader.tensor(name) for name in reader.names()}
    for name, layer in compressed_layers(model).items():
        weight = layer.quantized()
        if weight.scheme.activations != "none":
            raise ValueError(f"{name} rounds its inputs, which a float checkpoint cannot state")
        stored = reader.source_name(f"{name}.weight")
        values = weight.dequantize()
        if isinstance(layer, CompressedLinear) and layer.adapter is not None:
            values = values + layer.adapter.low_rank().matrix()
        tensors[stored] = values.to(tensors[stored].dtype).contiguous()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
