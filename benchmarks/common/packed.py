"""Bytes of the quantized layers of a checkpoint, as stored and in a container."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import vlpress
from vlpress.model.checkpoint import canonical_name
from vlpress.model.packed.reading import tensor_sizes
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.adapter import PREFIX, owner_of
from vlpress.quant.driver.pipeline import save_quantized
from vlpress.quant.driver.report import QuantReport


def layer_bytes(model: QwenVL, report: QuantReport, source: Path) -> dict[str, int]:
    """Write a quantized model, pack it, and count the bytes of its quantized layers.

    Args:
        model: quantized.
        report: of its quantization.
        source: folder of the original.

    Returns:
        `stored` and `packed` bytes, adapters included, without biases, and the number of `weights`.
    """
    names = {layer.row.name for layer in report.layers}
    stored = packed = 0
    with TemporaryDirectory() as work:
        checkpoint, out = Path(work) / "checkpoint", Path(work) / "packed"
        save_quantized(model, report, source, checkpoint)
        vlpress.pack(checkpoint, out=out, progress=False)
        for path in out.rglob("*.vlz"):
            for info, coded in tensor_sizes(path):
                name = canonical_name(info.name.removeprefix(PREFIX))
                layer, _, part = name.rpartition(".")
                if owner_of(name) in names or (layer in names and part != "bias"):
                    stored += info.end - info.begin
                    packed += coded
    weights = sum(layer.row.spec.weights for layer in report.layers)
    return {"stored": stored, "packed": packed, "weights": weights}
