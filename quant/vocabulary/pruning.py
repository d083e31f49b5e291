"""The pruning of one checkpoint's vocabulary: the choice of tokens, the new config, the new files.

Everything but the rows of two matrices is decided by the tokenizer and the texts, so a plan knows
the result without reading weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import tee
from pathlib import Path
from typing import Any

from ...common.lazy_tensor import LazyTensor
from ...model.checkpoint import CheckpointReader
from ...model.config import ModelConfig
from ...model.families import family_of
from ...model.processing.chat_templates import PROBE, read_chat_template, render_chat
from ...model.processing.processor import Processor
from ...model.processing.tokenizer import load_tokenizer
from ...model.processing.tokenizer_identity import identify_tokenizer
from ..prepare.rewriting import mapped
from .byte_pairs import FILE as TOKENIZER
from .byte_pairs import BytePairs
from .kept_tokens import KeptTokens
from .record import KEPT, ORIGINAL
from .rows import ROWS
from .selection import Selection, required_tokens, select_tokens
from .texts import (
    HELD_OUT,
    Length,
    check_texts,
    count_tokens,
    digest_texts,
    read_pieces,
    template_pieces,
    tokenize,
)
from .tokenizer_files import CONFIG, Writer, file_writers, pruned_config

FIXED_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
"""Fields of the config that have defaults, and are written in any case."""


@dataclass(frozen=True)
class TextCounts:
    """Tokens of the given texts in the original vocabulary."""

    counts: Mapping[int, int]
    """Occurrences by id, without held-out pieces."""
    held_out: tuple[str, ...] = field(repr=False)
    """Held-out pieces."""
    held_counts: Mapping[int, int] = field(repr=False)
    """Occurrences in them."""
    template: frozenset[int]
    """Tokens that the chat template writes."""
    ids: Mapping[str, int] = field(repr=False)
    """All ids of the tokenizer as transformers reads it."""


@dataclass(frozen=True)
class Pruning:
    """Everything that is decided before tensors are read."""

    folder: Path
    config: ModelConfig
    """Of the original."""
    tokens: BytePairs
    counted: TextCounts
    selection: Selection
    kept: KeptTokens

    @classmethod
    def choose(
        cls,
        folder: Path,
        config: ModelConfig,
        texts: Sequence[str],
        held_out: Sequence[str],
        *,
        size: int | None,
        multiple: int,
    ) -> Pruning:
        """Choose the tokens to keep.

        Args:
            folder: of the original, of which only side files are read.
            config: of the original.
            texts: files that tokens are counted on.
            held_out: files to measure lengths on; without any, pieces of `texts` are held out.
            size: tokens to keep, see `select_tokens`.
            multiple: of the number of rows.

        Raises:
            FileNotFoundError: there is no tokenizer.json, or no such text.
            ValueError: the tokenizer or a text is unusable, or nothing would be removed.
        """
        rows = ModelConfig.from_folder(folder).text.vocab_size
        if config.text.vocab_size != rows:
            raise ValueError(
                f"prune_vocab: {folder} has {rows} rows, but an earlier step leaves "
                f"{config.text.vocab_size}; prune the vocabulary in one step"
            )
        check_texts([*texts, *held_out])
        tokens = BytePairs.from_folder(folder)
        inputs = [str(path) for path in (folder / CONFIG, *_side_files(folder))]
        digest = digest_texts([*inputs, *texts, *held_out])
        counted = _count(folder, tuple(texts), tuple(held_out), digest)
        _check_same(folder, tokens, counted.ids)
        required = required_tokens(tokens, counted.template)
        selection = select_tokens(tokens, required, counted.counts, size=size, multiple=multiple)
        kept = KeptTokens(selection.kept, config.text.vocab_size)
        return cls(folder, config, tokens, counted, selection, kept)

    @property
    def new_config(self) -> ModelConfig:
        """The config of the pruned checkpoint.

        Raises:
            ValueError: it has the id of a token that is not always kept.
        """
        fixed = {name: getattr(self.config, name) for name in FIXED_IDS}
        return ModelConfig.from_dict(pruned_config(self.config.raw, self.kept, fixed))

    @property
    def removed_tokens(self) -> int:
        """Tokens of the tokenizer that are removed."""
        return len(self.tokens.ids) - len(self.kept.ids)

    @property
    def dropped_rows(self) -> int:
        """Rows of the original that belong to no token."""
        return self.kept.rows - len(self.tokens.ids)

    def writers(self) -> dict[str, Writer]:
        """Return the functions that write the changed side files, see `file_writers`."""
        names = [path.relative_to(self.folder).as_posix() for path in _side_files(self.folder)]
        return file_writers(self.folder, names, self.tokens, self.kept)

    def change(self, name: str, tensor: LazyTensor) -> dict[str, LazyTensor]:
        """Select the kept rows of a tensor that has one per token; others stay."""
        if name not in ROWS:
            return {name: tensor}
        shape = (len(self.kept.ids), *tensor.shape[1:])
        return {name: mapped(tensor, lambda rows: rows[self.kept.index], shape)}

    def summary(self) -> str:
        """Describe the pruning in one line, before it is done."""
        chosen = self.selection
        line = (
            f"{len(self.tokens.ids)} tokens ({self.kept.rows} rows) to {len(self.kept.ids)}: "
            f"{chosen.required} always kept, {chosen.counted} for the texts, {chosen.filled} by "
            f"merge order"
        )
        if chosen.uncounted:
            line += f"; {chosen.uncounted} tokens of the texts are removed"
        if held_out := self.held_out_tokens:
            line += f"; {self.held_out_removed / held_out:.2%} of held-out tokens are removed"
        return line

    @property
    def held_out_tokens(self) -> int:
        """Tokens of the held-out texts in the original vocabulary."""
        return sum(self.counted.held_counts.values())

    @property
    def held_out_removed(self) -> int:
        """Those of them that are removed."""
        new = self.kept.new_ids
        return sum(n for token, n in self.counted.held_counts.items() if token not in new)

    def _measure_length(self, pruned: Path) -> Length:
        tokenizer = load_tokenizer(pruned, ModelConfig.from_folder(pruned))
        after = sum(map(len, tokenize(self.counted.held_out, tokenizer)))
        return Length(self.held_out_tokens, self.held_out_removed, after)

    def record(self, pruned: Path) -> dict[str, Any]:
        """Measure the held-out texts in the new vocabulary, and return the record as JSON values.

        Args:
            pruned: folder of the pruned checkpoint.
        """
        chosen, processor = self.selection, Processor.from_folder(self.folder)
        return {
            "tokens_before": len(self.tokens.ids),
            "tokens_after": len(self.kept.ids),
            "removed_tokens": self.removed_tokens,
            "dropped_rows": self.dropped_rows,
            "bytes_saved": _table_bytes(self.folder) - _table_bytes(pruned),
            "always_kept": chosen.required,
            "kept_for_texts": chosen.counted,
            "kept_by_merge_order": chosen.filled,
            "removed_of_texts": chosen.uncounted,
            "lengths": self._measure_length(pruned).to_dict(),
            KEPT: self.kept.to_dict(),
            ORIGINAL: identify_tokenizer(processor.tokenizer, processor.stop_ids),
        }


def _table_bytes(folder: Path) -> int:
    """Count the bytes of the tensors with a row per token."""
    reader = CheckpointReader(folder)
    return sum(reader.nbytes(name) for name in ROWS if name in reader)


def _check_same(folder: Path, tokens: BytePairs, ids: Mapping[str, int]) -> None:
    """Check that transformers reads the tokens of `tokenizer.json`, no others and no fewer.

    Raises:
        ValueError: a token has another id, or one of the two lacks it.
    """
    for token in {**ids, **tokens.ids}:
        if ids.get(token) != tokens.ids.get(token):
            read, stored = (
                "none" if token_id is None else f"the id {token_id}"
                for token_id in (ids.get(token), tokens.ids.get(token))
            )
            raise ValueError(
                f"{folder}: {token!r} has {read} as transformers reads the tokenizer and {stored} "
                f"in {TOKENIZER}; save the tokenizer again with all its tokens"
            )


def _side_files(folder: Path) -> list[Path]:
    patterns = family_of(ModelConfig.from_folder(folder)).side_files
    return [path for pattern in patterns for path in sorted(folder.glob(pattern))]


@lru_cache(maxsize=4)
def _count(folder: Path, texts: Sequence[str], held_out: Sequence[str], digest: str) -> TextCounts:
    """Count the tokens of texts; once per content, since plan and run both need the counts.

    Args:
        folder: of the original.
        texts: files that tokens are counted on.
        held_out: files to measure lengths on.
        digest: of the contents of all files, the tokenizer's included.
    """
    tokenizer = load_tokenizer(folder, ModelConfig.from_folder(folder))
    counts: Counter[int] = Counter()
    held_counts: Counter[int] = Counter()
    held: list[str] = []
    for index, (piece, ids) in enumerate(_encoded(texts, tokenizer)):
        if not held_out and index % HELD_OUT == HELD_OUT - 1:
            held.append(piece)
            held_counts.update(ids)
        else:
            counts.update(ids)
    for piece, ids in _encoded(held_out, tokenizer):
        held.append(piece)
        held_counts.update(ids)
    template = template_pieces(read_chat_template(folder).text)
    written = [*template, render_chat(tokenizer, PROBE, add_generation_prompt=True)]
    needed = count_tokens(tokenize(written, tokenizer))
    return TextCounts(counts, tuple(held), held_counts, frozenset(needed), tokenizer.get_vocab())


def _encoded(paths: Iterable[str], tokenizer: Any) -> Iterator[tuple[str, list[int]]]:
    """Yield the pieces of text files with their token ids."""
    for path in paths:
        pieces, copies = tee(read_pieces(path, tokenizer))
        yield from zip(pieces, tokenize(copies, tokenizer), strict=True)
