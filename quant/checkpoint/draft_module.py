"""Loading of a checkpoint's module for multi-token prediction, quantized or not."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ...model.mtp import PREFIX, MultiTokenPredictor, load_predictor
from ...model.qwen_vl import QwenVL
from .loading import is_quantized
from .safetensors_folder.reading import QuantizedCheckpoint


def open_predictor(folder: Path, model: QwenVL) -> MultiTokenPredictor:
    """Load the module; layers that the checkpoint holds quantized are dequantized.

    Raises:
        ValueError: the checkpoint has no such module, or not its tensors.
    """
    return load_predictor(folder, model, _dequantized(folder) if is_quantized(folder) else {})


def _dequantized(folder: Path) -> dict[str, Tensor]:
    """Return the float32 weights of the module's quantized layers by name of the layer."""
    checkpoint = QuantizedCheckpoint(folder)
    names = [name for name in checkpoint.schemes if name.startswith(PREFIX)]
    return {name: checkpoint.weight(name).dequantize() for name in names}
