"""The tensors of a checkpoint that have one row per token."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...model.checkpoint import CheckpointReader
from ...model.config import ModelConfig
from ...model.families import EMBEDDING
from ...model.loading import HEAD, parameter_shapes

ROWS = (f"{EMBEDDING}.weight", HEAD)
"""Tensors whose rows are selected; a tied head that is stored is among them."""


def check_rows(folder: Path, config: ModelConfig) -> None:
    """Check that no tensor of a checkpoint but those of `ROWS` can belong to the vocabulary.

    Tensors of the model's other modules have known sizes; of those that the model does not compute
    with, one may have a row per token.

    Args:
        folder: the checkpoint; only headers of its files are read.
        config: its config.

    Raises:
        ValueError: a tensor has a dimension as long as the vocabulary.
    """
    reader = CheckpointReader(folder)
    known = set(parameter_shapes(config))
    size = config.text.vocab_size
    for name in _others(reader, known):
        if size in reader.shape(name):
            raise ValueError(
                f"{folder}: {reader.source_name(name)} of shape "
                f"{list(reader.shape(name))} may have a row for each of the {size} tokens, which "
                f"prune_vocab does not understand; allowed: {', '.join(ROWS)}; remove the tensor, "
                "or leave prune_vocab out"
            )


def _others(reader: CheckpointReader, known: set[str]) -> Iterable[str]:
    return (name for name in reader.names() if name not in known and name not in ROWS)
