"""Bytes of a checkpoint's tensors, as stored and in a container."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import vlpress
from vlpress.model.byte_parts import bytes_by_part
from vlpress.model.checkpoint import canonical_name
from vlpress.model.config import ModelConfig
from vlpress.model.packed.reading import tensor_sizes
from vlpress.quant.checkpoint.adapter import PREFIX, owner_of
from vlpress.quant.driver.report import LayerReport

DECODER = ("decoder", "head")
"""Parts that rows change. The head of a tied model has bytes only after a rotation."""


def packed_bytes(checkpoint: Path, layers: Iterable[LayerReport] = ()) -> dict[str, int]:
    """Pack a checkpoint and count the bytes of its tensors, adapters included.

    Args:
        checkpoint: folder, float or quantized.
        layers: its quantized layers.

    Returns:
        `stored` and `packed` bytes of the quantized layers without biases, and the number of their
        `weights`; `decoder_stored` and `decoder_packed` bytes of all tensors of `DECODER`.
    """
    specs = {layer.row.name: layer.row.spec for layer in layers}
    stored, packed = {}, {}
    with TemporaryDirectory() as work:
        out = Path(work) / "packed"
        vlpress.pack(checkpoint, out=out, progress=False)
        for path in out.rglob("*.vlz"):
            for info, coded in tensor_sizes(path):
                name = canonical_name(info.name.removeprefix(PREFIX))
                stored[name], packed[name] = info.end - info.begin, coded

    def is_of_layer(name: str) -> bool:
        layer, _, part = name.rpartition(".")
        return owner_of(name) in specs or (layer in specs and part != "bias")

    def of_decoder(sizes: dict[str, int]) -> int:
        parts = bytes_by_part(config, sizes.items())
        return sum(parts[part] for part in DECODER)

    config = ModelConfig.from_folder(checkpoint)
    return {
        "stored": sum(size for name, size in stored.items() if is_of_layer(name)),
        "packed": sum(size for name, size in packed.items() if is_of_layer(name)),
        "weights": sum(spec.weights for spec in specs.values()),
        "decoder_stored": of_decoder(stored),
        "decoder_packed": of_decoder(packed),
    }
