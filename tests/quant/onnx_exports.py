"""Exports of small models as ONNX, and what the host program computes with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import ModelProto, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor
from onnx_host import Array, Host
from tiny_models import small_config, small_model, write_small_checkpoint

from vlpress.model.processing.inputs import Prompt
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.api import export

ONNX_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
LOGITS_TOLERANCE = 1e-4
"""Largest difference to vlpress in fp32, of the largest logit."""


def float_export(
    folder: Path,
    family: str = "qwen2_5_vl",
    *,
    dtype: torch.dtype = torch.float32,
    text: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[QwenVL, Path]:
    """A float model in fp32, and the folder of its export."""
    name = str(dtype).removeprefix("torch.")
    model = small_model(small_config(family, **(text or {})) | {"torch_dtype": name}, dtype=dtype)
    source = write_small_checkpoint(folder / "source", model)
    return model.float(), export_of(source, folder / "onnx", **options)


def export_of(source: Path, out: Path, **options: Any) -> Path:
    """Export a checkpoint."""
    export(source, out=out, format="onnx", **options)
    return out


def arrays(prompt: Prompt) -> tuple[Array, Array]:
    """Token ids and position ids of a prompt."""
    return prompt.input_ids.numpy(), prompt.position_ids.numpy()


def features_of(host: Host, prompt: Prompt) -> dict[str, Array]:
    """Features of the visuals of a prompt; empty without any."""
    if not prompt.visuals:
        return {}
    patches = np.concatenate([visual.patches.numpy() for visual in prompt.visuals])
    return host.features(patches, [visual.grid for visual in prompt.visuals])


def logits_of(host: Host, prompt: Prompt, **options: Any) -> Array:
    """Logits of all tokens of a prompt, from its patches and ids."""
    return host.logits(*arrays(prompt), features_of(host, prompt), **options)


def largest_difference(model: QwenVL, host: Host, prompts: Sequence[Prompt]) -> float:
    """Of the logits of all tokens, relative to the largest logit of a prompt."""
    worst = 0.0
    for prompt in prompts:
        with torch.no_grad():
            expected = model([prompt])[0].numpy()
        difference = np.abs(logits_of(host, prompt) - expected).max() / np.abs(expected).max()
        worst = max(worst, float(difference))
    return worst


def graph_of(folder: Path, name: str) -> ModelProto:
    """Read a graph without its weights."""
    return onnx.load(folder / f"{name}.onnx", load_external_data=False)


def initializers(folder: Path, name: str) -> dict[str, Array]:
    """Read the weights of a graph."""
    actual = {}
    for tensor in graph_of(folder, name).graph.initializer:
        if tensor.external_data:
            load_external_data_for_tensor(tensor, str(folder))
        actual[tensor.name] = numpy_helper.to_array(tensor).copy()
    return actual


def unpack_bytes(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Unpack the last dimension, the first value from the lowest bits of a byte."""
    each_bit = np.unpackbits(packed, axis=-1, bitorder="little")
    grouped = each_bit.reshape(*each_bit.shape[:-1], -1, bits)
    values: npt.NDArray[np.uint8] = (grouped << np.arange(bits, dtype=np.uint8)).sum(-1, np.uint8)
    return values
