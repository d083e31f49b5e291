"""A byte-level BPE tokenizer as `tokenizer.json` stores it: its tokens, merges and added tokens.

Encoding splits a text into words, a word into bytes, and merges adjacent tokens, the pair with the
lowest rank first (Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units",
arXiv 1508.07909, section 3.2). A token is therefore reachable only if both parts of its merge are
tokens too: `closure` adds them, recursively.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from ...common.validation import shown
from ...model.config import read_checkpoint_json

FILE = "tokenizer.json"
REMEDY = "take a checkpoint with a byte-level BPE tokenizer, or leave prune_vocab out"
# Options of the BPE model that change how tokens are found, with the values that are understood.
PLAIN_OPTIONS: Mapping[str, tuple[object, ...]] = {
    "dropout": (None, 0, 0.0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (None, False),
}


def byte_letters() -> frozenset[str]:
    """Return the 256 characters that stand for single bytes in byte-level tokens.

    Printable bytes of Latin-1 stand for themselves, the others for the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = 256 - len(printable)
    return frozenset(map(chr, [*printable, *range(0x100, 0x100 + others)]))


@dataclass(frozen=True)
class BytePairs:
    """The tokens and merges of a byte-level BPE tokenizer."""

    data: Mapping[str, Any]
    """Content of `tokenizer.json`."""
    vocab: Mapping[str, int]
    """Ids of the tokens of the BPE model, in byte letters."""
    merges: tuple[tuple[str, str], ...]
    """Pairs of tokens, in the order in which they are tried."""
    added: Mapping[str, int]
    """Ids of the added tokens, which are found in a text before it is split."""

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read `tokenizer.json` of a checkpoint.

        Raises:
            FileNotFoundError: the folder has no such file.
            ValueError: it is damaged, or not a byte-level BPE tokenizer.
        """
        path = folder / FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder}: no {FILE}, which prune_vocab rewrites; load the tokenizer with "
                "transformers' AutoTokenizer and save it into the folder"
            )
        data = read_checkpoint_json(path)
        _check_kind(path, data)
        model = data["model"]
        merges = tuple(_pair(path, merge) for merge in model["merges"])
        added = {entry["content"]: entry["id"] for entry in data.get("added_tokens") or ()}
        tokens = cls(data, model["vocab"], merges, added)
        tokens._check_ids(path)
        return tokens

    @cached_property
    def ids(self) -> dict[str, int]:
        """Ids of all tokens, sorted by id."""
        both = {**self.vocab, **self.added}
        return dict(sorted(both.items(), key=lambda item: item[1]))

    @cached_property
    def parents(self) -> dict[int, tuple[int, ...]]:
        """Ids of the parts of all merges that make a token, by its id."""
        parts: dict[int, tuple[int, ...]] = {}
        for left, right in self.merges:
            token = self.vocab[left + right]
            parts[token] = (*parts.get(token, ()), self.vocab[left], self.vocab[right])
        return parts

    @property
    def bytes(self) -> set[int]:
        """Ids of the tokens of a single byte."""
        letters = byte_letters()
        return {token_id for token, token_id in self.vocab.items() if token in letters}

    @property
    def unknown(self) -> set[int]:
        """Id of the token that stands for what cannot be encoded, if there is one."""
        token = self.data["model"].get("unk_token")
        return {self.ids[token]} if token in self.ids else set()

    @property
    def digits(self) -> set[int]:
        """Ids of the tokens of digits alone, of any length."""
        return {
            token_id
            for token, token_id in self.vocab.items()
            if token.isascii() and token.isdigit()
        }

    def closure(self, ids: Iterable[int]) -> set[int]:
        """Return the ids with those of all tokens that they are merged from.

        Args:
            ids: of any tokens; ids of no token are returned as they are.
        """
        closed: set[int] = set()
        pending = list(ids)
        while pending:
            token = pending.pop()
            if token not in closed:
                closed.add(token)
                pending += self.parents.get(token, ())
        return closed

    def kept_merges(self, kept: Collection[int]) -> list[int]:
        """Return the indices of the merges whose parts and result are all kept."""
        return [
            index
            for index, (left, right) in enumerate(self.merges)
            if all(self.vocab[token] in kept for token in (left, right, left + right))
        ]

    def _check_ids(self, path: Path) -> None:
        tokens = len({**self.vocab, **self.added})
        ids = set(self.vocab.values()) | set(self.added.values())
        if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
            raise ValueError(f"{path}: a token has no id; fetch the file again")
        if len(ids) != tokens:
            raise ValueError(
                f"{path}: {tokens} tokens have {len(ids)} different ids; fetch the file again"
            )
        for left, right in self.merges:
            if missing := [t for t in (left, right, left + right) if t not in self.vocab]:
                raise ValueError(
                    f"{path}: the merge of {shown(left)} and {shown(right)} needs the token "
                    f"{shown(missing[0])}, which is missing; fetch the file again"
                )


def _check_kind(path: Path, data: Mapping[str, Any]) -> None:
    """Check that the tokenizer is byte-level BPE.

    Raises:
        ValueError: it is of another kind, or has an option that is not understood.
    """
    model = data.get("model")
    kind = model.get("type") if isinstance(model, Mapping) else None
    if not isinstance(model, Mapping) or kind != "BPE":
        raise ValueError(f"{path}: model.type is {shown(kind)}; allowed: 'BPE'; {REMEDY}")
    for option, allowed in PLAIN_OPTIONS.items():
        if model.get(option) not in allowed:
            raise ValueError(
                f"{path}: model.{option} is {shown(model[option])}; allowed: null; {REMEDY}"
            )
    if not isinstance(model.get("vocab"), Mapping) or not isinstance(model.get("merges"), list):
        raise ValueError(f"{path}: model has no vocab or no merges; fetch the file again")
    for section in ("pre_tokenizer", "decoder"):
        if "ByteLevel" not in _types(data.get(section)):
            raise ValueError(
                f"{path}: {section} is not byte-level, so a removed token could not be spelled in "
                f"bytes; allowed: 'ByteLevel'; {REMEDY}"
            )


def _types(section: object) -> set[str]:
    """Return the types of a component and of those that it is a sequence of."""
    if not isinstance(section, Mapping):
        return set()
    parts = [*section.get("pretokenizers", ()), *section.get("decoders", ())]
    return {str(section.get("type")), *(kind for part in parts for kind in _types(part))}


def _pair(path: Path, merge: object) -> tuple[str, str]:
    """Return the parts of a merge, which is a pair or a text with a space between them."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(type(p) is str for p in parts):
        raise ValueError(
            f"{path}: the merge {shown(merge)} is not a pair of tokens; fetch the file again"
        )
    return parts[0], parts[1]
