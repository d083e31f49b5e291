"""Texts that tokens are counted on: plain text, JSONL samples, drawings, chat templates.

Every tenth piece of a text is held out: it is not counted, and shows by how much a text of the same
kind gets longer.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...calib.samples.draw import load_samples
from ...calib.samples.sample import Sample
from ...calib.samples.sources import check_source, open_source
from ...common.text_files import decode_utf8
from ...model.processing.chat import split_messages
from ...model.processing.chat_format import QWEN
from ...model.processing.chat_templates import render_chat

HELD_OUT = 10
"""One piece of this many is held out."""
PIECE = 2**16
"""Largest number of characters of a piece of a plain text."""
BATCH = 256
"""Pieces that are tokenized in one call."""
PLAIN, SAMPLES = ".txt", ".jsonl"
SYNTHETIC = "synthetic"
"""Name of the texts of the built-in drawings."""
DRAWINGS = 256
"""Number of drawings."""
_LITERAL = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", re.DOTALL)
_TAGS = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


@dataclass(frozen=True)
class Length:
    """Tokens of a text before and after pruning."""

    tokens: int
    """In the original vocabulary."""
    removed: int
    """Those of them that are not kept."""
    after: int
    """Tokens of the same text in the pruned vocabulary."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values with both shares; None of an empty text."""
        count = self.tokens
        return {
            "tokens": count,
            "tokens_after": self.after,
            "removed_share": self.removed / count if count else None,
            "growth": self.after / count - 1 if count else None,
        }


def check_texts(paths: Sequence[str]) -> None:
    """Check that text files exist and are of a known type.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: it is of another type.
    """
    for path in paths:
        if path != SYNTHETIC and Path(path).suffix.lower() not in (PLAIN, SAMPLES):
            raise ValueError(
                f"prune_vocab: the text {path!r} is of an unknown type; allowed: files with the "
                f"ending {PLAIN} (plain text) or {SAMPLES} (samples, as for --calib), or "
                f"{SYNTHETIC!r}"
            )
        check_source(path)


def digest_texts(paths: Iterable[str]) -> str:
    """Return the sha256 of the contents of texts in order.

    Raises:
        OSError: a file cannot be read.
    """
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{Path(path).name}\0".encode())
        if path != SYNTHETIC:
            with Path(path).open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def read_pieces(path: str, tokenizer: Any) -> Iterator[str]:
    """Yield the pieces of a text; samples are rendered with the chat template.

    Args:
        path: a text that `check_texts` accepts.
        tokenizer: a transformers tokenizer with the template set.

    Raises:
        ValueError: the file is not UTF-8, or has a record of another form.
    """
    if path == SYNTHETIC:
        yield from sample_pieces(load_samples(SYNTHETIC, n=DRAWINGS, seed=0), tokenizer)
        return
    if Path(path).suffix.lower() == PLAIN:
        yield from _pieces(decode_utf8(Path(path).read_bytes(), f"text file {path}"))
        return
    source = open_source(path)
    for index in range(source.count):
        try:
            sample = source.read(index)
        except (ValueError, OSError) as error:
            raise ValueError(f"{source.locate(index)}: {error}") from None
        yield from sample_pieces([sample], tokenizer)


def sample_pieces(samples: Iterable[Sample], tokenizer: Any) -> Iterator[str]:
    """Yield the text of each sample with its answer, without opening images."""
    for sample in samples:
        messages, _ = split_messages(sample.messages)
        text = render_chat(tokenizer, messages, add_generation_prompt=True)
        yield f"{text}{sample.answer}{QWEN.end_of_turn}" if sample.answer else text


def template_pieces(template: str) -> list[str]:
    """Return the texts that a chat template writes: its string literals, and text outside tags."""
    pieces = [text for text in _TAGS.split(template) if text.strip()]
    for tag in _TAGS.findall(template):
        pieces += [_unescape(one or two) for one, two in _LITERAL.findall(tag) if one or two]
    return pieces


def tokenize(pieces: Iterable[str], tokenizer: Any) -> Iterator[list[int]]:
    """Yield the token ids of each piece."""
    batch: list[str] = []
    for piece in pieces:
        batch.append(piece)
        if len(batch) == BATCH:
            yield from _encode(batch, tokenizer)
            batch = []
    yield from _encode(batch, tokenizer)


def count_tokens(texts: Iterable[Sequence[int]]) -> Counter[int]:
    """Count the occurrences of each token id."""
    counts: Counter[int] = Counter()
    for ids in texts:
        counts.update(ids)
    return counts


def _encode(batch: list[str], tokenizer: Any) -> list[list[int]]:
    if not batch:
        return []
    ids: list[list[int]] = tokenizer(batch, add_special_tokens=False)["input_ids"]
    return ids


def _pieces(text: str) -> Iterator[str]:
    """Cut a plain text into lines, each with the blank space after it; long ones are cut too."""
    for paragraph in re.split(r"(?<=\n)(?=\S)", text):
        for begin in range(0, len(paragraph), PIECE):
            if piece := paragraph[begin : begin + PIECE]:
                yield piece


def _unescape(literal: str) -> str:
    return re.sub(
        r"\\(.)", lambda m: _ESCAPES.get(m.group(1), m.group(1)), literal, flags=re.DOTALL
    )
