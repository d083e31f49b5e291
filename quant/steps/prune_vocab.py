"""Preparation prune_vocab: keep the tokens of given texts, see `vocabulary/`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from ...common.validation import Allowed, Integer, validated
from .preparation import Foreseen, Preparation

if TYPE_CHECKING:
    from ...model.config import ModelConfig
    from ..prepare.context import Context
    from ..vocabulary.pruning import Pruning

Texts = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    Allowed("a list of .txt and .jsonl files, or 'synthetic'"),
]
ROWS = 64
"""Default of `multiple`: engines' kernels and tensor-parallel shards divide such a vocabulary."""


@validated
class PruneVocabStep(Preparation):
    """Removal of tokens, with their rows of the token embedding and of the output head."""

    texts: Annotated[Texts, Field(min_length=1)]
    """Files that tokens are counted on, or "synthetic", the texts of the built-in drawings."""
    tokens: Annotated[int, Integer(1)] | None = None
    """Tokens to keep, rounded up to a multiple of `multiple`; None: as many as the texts have."""
    held_out: Texts = ()
    """Texts to measure lengths on; without any, a tenth of `texts` is not counted but measured."""
    multiple: Annotated[int, Integer(1)] = ROWS
    """The number of rows is a multiple of it."""

    method: ClassVar[str] = "prune_vocab"
    changes_tokens: ClassVar[bool] = True

    def foresee(self, config: ModelConfig, folder: Path | None) -> Foreseen:
        """See `Preparation.foresee`; the tokens are chosen here, as in `prepare`."""
        from ...model.config import ModelConfig
        from ..vocabulary.rows import check_rows

        if folder is None:
            raise ValueError(
                "prune_vocab chooses tokens by the checkpoint's tokenizer; give the checkpoint's "
                "folder, not its config alone"
            )
        check_rows(folder, ModelConfig.from_folder(folder))
        pruning = self._choose(config, folder)
        pruning.writers()  # refuses files that cannot be rewritten
        return Foreseen(pruning.new_config, pruning.summary())

    def prepare(self, source: Path, destination: Path, context: Context) -> Mapping[str, Any]:
        """See `Preparation.prepare`."""
        from ...model.checkpoint import CheckpointReader
        from ...model.config import ModelConfig
        from ..prepare.rewriting import rewrite_checkpoint

        pruning = self._choose(ModelConfig.from_folder(source), source)
        rewrite_checkpoint(
            CheckpointReader(source),
            destination,
            pruning.change,
            config=pruning.new_config.raw,
            side_files=pruning.writers(),
            update=context.update,
        )
        return pruning.record(destination)

    def identify_files(self) -> dict[str, Any]:
        """See `Preparation.identify_files`."""
        from ..vocabulary.texts import check_texts, digest_texts

        texts = [*self.texts, *self.held_out]
        check_texts(texts)
        return {"texts": digest_texts(texts)}

    def to_dict(self) -> dict[str, Any]:
        """See `Preparation.to_dict`; a number of tokens that is not given has no key."""
        values = super().to_dict()
        return {key: value for key, value in values.items() if value is not None}

    def _choose(self, config: ModelConfig, folder: Path) -> Pruning:
        from ..vocabulary.pruning import Pruning

        return Pruning.choose(
            folder,
            config,
            self.texts,
            self.held_out,
            size=self.tokens,
            multiple=self.multiple,
        )
