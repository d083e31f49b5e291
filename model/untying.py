"""Give a model whose output head is tied to the token embedding a head of its own.

Head and embedding can then have different numbers of bits. Until they are quantized they are equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from .checkpoint import CheckpointReader
from .config import ModelConfig
from .families import EMBEDDING
from .loading import HEAD
from .qwen_vl import QwenVL

KEY = "tie_word_embeddings"


def untied_config(config: ModelConfig) -> ModelConfig:
    """Return the config with `tie_word_embeddings` false, in `text_config` too if there is one."""
    raw = {**config.raw, KEY: False}
    if isinstance(text := raw.get("text_config"), Mapping):
        raw["text_config"] = {**text, KEY: False}
    return ModelConfig.from_dict(raw)


def untie_model_(model: QwenVL) -> None:
    """Add a head to a tied model, in place; its weight shares the memory of the embedding's."""
    text = model.config.text
    head = nn.Linear(text.hidden_size, text.vocab_size, bias=False, device="meta")
    head.weight = nn.Parameter(model.model.embed_tokens.weight.detach(), requires_grad=False)
    model.lm_head = head
    model.config = untied_config(model.config)
    model.model.config = model.config.text


class UntiedReader(CheckpointReader):
    """A checkpoint with a tied head, read as if the head were stored besides the embedding.

    Args:
        folder: see `CheckpointReader`.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self._is_stored = HEAD in self._sources

    def names(self) -> list[str]:
        """See `CheckpointReader.names`."""
        return super().names() if self._is_stored else [*super().names(), HEAD]

    def __contains__(self, name: object) -> bool:
        return name == HEAD or super().__contains__(name)

    def source_name(self, name: str) -> str:
        """See `CheckpointReader.source_name`; all namings call the head alike."""
        return HEAD if name == HEAD else super().source_name(name)

    def _location(self, name: str) -> tuple[str, str]:
        is_copy = name == HEAD and not self._is_stored
        return super()._location(f"{EMBEDDING}.weight" if is_copy else name)


def open_source(folder: str | Path, *, untied: bool = False) -> CheckpointReader:
    """Open a float checkpoint, with a head of its own if `untied`."""
    return UntiedReader(folder) if untied else CheckpointReader(folder)
