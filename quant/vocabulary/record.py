"""The record of a pruned vocabulary in a checkpoint, which evaluations map token ids by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.checksum import hash_json
from ...model.config import read_checkpoint_json
from ..checkpoint.safetensors_folder.shards import REPORT_FILE
from ..steps.prune_vocab import PruneVocabStep
from .kept_tokens import KeptTokens

PREPARATIONS = "preparations"
"""Key of the steps' records in `vlpress.json`."""
KEPT, ORIGINAL = "kept_tokens", "original_text"
"""Keys of the map of ids, and of the identity of the original's tokenizer."""


@dataclass(frozen=True)
class PrunedVocabulary:
    """A checkpoint's vocabulary, pruned from another one's."""

    kept: KeptTokens
    original: Mapping[str, Any]
    """Identity of the original's tokenizer, see `identify_tokenizer`."""

    @classmethod
    def of(cls, folder: Path) -> PrunedVocabulary | None:
        """Read the record of a checkpoint; None if its vocabulary was not pruned.

        Raises:
            ValueError: the record is damaged.
        """
        path = folder / REPORT_FILE
        steps = read_checkpoint_json(path).get(PREPARATIONS, ()) if path.is_file() else ()
        for step in steps:
            if step.get("method") == PruneVocabStep.method:
                return cls(KeptTokens.from_dict(step.get(KEPT, {})), step.get(ORIGINAL, {}))
        return None

    def describe(self) -> dict[str, Any]:
        """Return JSON values for the fingerprint of an evaluation."""
        return {
            "original": dict(self.original),
            "rows": self.kept.rows,
            "kept": len(self.kept.ids),
            "map": hash_json(self.kept.to_dict()),
        }
