"""The format `onnx-genai`: a folder that onnxruntime-genai answers from.

docs/onnx.md, "onnxruntime-genai", states the differences from `onnx`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .....common.atomic import write_json
from .....common.progress import Reporter
from .....model.processing.tokenizer import load_tokenizer
from ....checkpoint.safetensors_folder.shards import copy_side_files
from ....config import ExportOptions
from ...source import ExportSource
from ..onnx_format import VERSION, OnnxFormat, describe_layers, find_notes

CONFIG = "genai_config.json"


@dataclass(frozen=True)
class GenaiFormat(OnnxFormat):
    """See the module."""

    name: str = "onnx-genai"
    options: tuple[str, ...] = ()

    def why_not(self, source: ExportSource, options: ExportOptions) -> str | None:
        """See `DeploymentFormat.why_not`."""
        if source.config.vision.deepstack_visual_indexes:
            return (
                f"its family {source.config.family} adds features of the tower to hidden states of "
                "the decoder (DeepStack), which onnxruntime-genai does not compute; "
                "use --format onnx"
            )
        return super().why_not(source, options)

    def write(
        self, source: ExportSource, folder: Path, options: ExportOptions, reporter: Reporter
    ) -> Mapping[str, Any]:
        """See `DeploymentFormat.write`; the checkpoint must have a tokenizer and image settings."""
        # The optional package is imported here, after `why_not`.
        from ..host import describe_host
        from ..writing import GraphWriter
        from .settings import IMAGES, genai_config, image_config
        from .writing import write_embedding, write_text, write_vision

        host = describe_host(source.folder, source.config, patches=None, prefill=None)
        if host["image"] is None or host["chat"] is None:
            raise ValueError(
                f"{source.folder} has no settings of images, tokenizer or chat template, which "
                "onnxruntime-genai needs; export a complete checkpoint"
            )
        pad = pad_token(source, host)
        writer = GraphWriter(source, folder)
        for step, write in (
            ("vision", write_vision),
            ("embedding", write_embedding),
            ("text", write_text),
        ):
            with reporter.step(step):
                write(writer)
        copy_side_files(source.folder, folder, source.family.side_files)
        write_json(folder / CONFIG, genai_config(host, pad_token=pad))
        write_json(folder / IMAGES, image_config(host))
        for note in (notes := find_notes(source)):
            reporter.warn(note)
        return {
            "format": self.name,
            "version": VERSION,
            "family": source.config.family,
            "graphs": writer.graphs,
            "layers": describe_layers(source),
            "notes": notes,
        }


def pad_token(source: ExportSource, host: Mapping[str, Any]) -> int:
    """Choose a token that no prompt contains; the runtime masks it and gives it position 0.

    Raises:
        ValueError: the tokenizer has none.
    """
    tokenizer = load_tokenizer(source.folder, source.config)
    token = tokenizer.pad_token_id
    texts = (host["chat"]["with_image"], host["chat"]["text_only"])
    if token is None or any(token in tokenizer.encode(text) for text in texts):
        raise ValueError(
            f"{source.folder}: pad_token of the tokenizer is {tokenizer.pad_token!r}; allowed: a "
            "token that the chat template does not write; correct tokenizer_config.json"
        )
    return int(token)
