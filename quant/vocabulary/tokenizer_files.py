"""Rewrite the files of a tokenizer for a pruned vocabulary.

All of them are written from the original's: order of merges, options and added tokens stay.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...common.atomic import write_json, write_text
from ...common.text_files import decode_utf8
from ...common.validation import shown
from ...model.config import read_checkpoint_json
from .byte_pairs import FILE, BytePairs
from .kept_tokens import KeptTokens
from .token_fields import map_token_fields

Writer = Callable[[Path, Path], None]
"""`write(source, target)` writes one file."""
VOCAB, MERGES, ADDED = "vocab.json", "merges.txt", "added_tokens.json"
CONFIG, TEMPLATE = "config.json", ".jinja"
COMMENT = "#version"
"""Beginning of the first line of merges.txt."""


def file_writers(
    folder: Path, names: Iterable[str], tokens: BytePairs, kept: KeptTokens
) -> dict[str, Writer]:
    """Return the functions that write the changed files, by name.

    Everything is checked here; the functions only write.

    Args:
        folder: the original checkpoint.
        names: its side files, without config.json.
        tokens: its tokenizer.
        kept: the kept tokens.

    Raises:
        ValueError: a file contradicts tokenizer.json, or has ids in a form that is not understood.
    """
    writers: dict[str, Writer] = {}
    for name in names:
        path = folder / name
        if name == FILE:
            writers[name] = partial(_write_compact, pruned_tokenizer(tokens, kept, str(path)))
        elif name == VOCAB:
            writers[name] = partial(_write_compact, _pruned_vocab(path, tokens, kept))
        elif name == ADDED:
            writers[name] = partial(_write_json, _pruned_vocab(path, tokens, kept))
        elif name == MERGES:
            writers[name] = partial(_write_lines, _pruned_merges(path, tokens, kept))
        elif name.endswith(".json"):
            before = read_checkpoint_json(path)
            after = map_token_fields(before, kept, str(path))
            if after != before:
                writers[name] = partial(_write_json, after)
        elif not name.endswith(TEMPLATE):
            raise ValueError(
                f"{path}: prune_vocab does not rewrite this file; allowed: {FILE} with {VOCAB}, "
                f"{MERGES} and {ADDED}; remove it if {FILE} is complete without it"
            )
    return writers


def pruned_tokenizer(tokens: BytePairs, kept: KeptTokens, at: str) -> dict[str, Any]:
    """Return the content of `tokenizer.json` for the kept tokens.

    Args:
        tokens: the original tokenizer.
        kept: the kept tokens.
        at: name of the file, for messages.

    Raises:
        ValueError: the post-processor inserts tokens in a form that is not understood.
    """
    data, new = dict(tokens.data), kept.new_ids
    model = dict(data["model"])
    vocab = sorted(tokens.vocab.items(), key=lambda item: item[1])
    model["vocab"] = {token: new[old] for token, old in vocab if old in new}
    model["merges"] = [model["merges"][index] for index in tokens.kept_merges(new)]
    data["model"] = model
    data["added_tokens"] = [
        {**entry, "id": new[entry["id"]]} for entry in data.get("added_tokens") or ()
    ]
    if data.get("padding"):
        data["padding"] = {**data["padding"], "pad_id": new[data["padding"]["pad_id"]]}
    data["post_processor"] = _post_processor(data.get("post_processor"), kept, at)
    return data


def pruned_config(config: Mapping[str, Any], kept: KeptTokens, fixed: Mapping[str, int]) -> Any:
    """Return the content of `config.json` with new ids and the new number of rows.

    Args:
        config: of the original.
        kept: the kept tokens.
        fixed: original ids of fields that libraries fill by default if the file lacks them; they
            are written at the top level.

    Raises:
        ValueError: an id is not one of a kept token.
    """
    complete = {**config, **{name: token for name, token in fixed.items() if name not in config}}
    mapped = map_token_fields(complete, kept, CONFIG)
    text, size = "text_config", {"vocab_size": len(kept.ids)}
    if isinstance(mapped.get(text), Mapping):
        mapped[text] = {**mapped[text], **size}
    if "vocab_size" in mapped or not isinstance(mapped.get(text), Mapping):
        mapped |= size
    return mapped


def _post_processor(section: Any, kept: KeptTokens, at: str) -> Any:
    """Map the ids of the tokens that a post-processor puts around a text."""
    kind = section.get("type") if isinstance(section, Mapping) else None
    if section is None or kind == "ByteLevel":
        return section
    if kind == "Sequence":
        parts = [_post_processor(part, kept, at) for part in section["processors"]]
        return {**section, "processors": parts}
    if kind == "TemplateProcessing":
        special = {
            name: {**entry, "ids": [kept.new_ids[token] for token in entry["ids"]]}
            for name, entry in section["special_tokens"].items()
        }
        return {**section, "special_tokens": special}
    raise ValueError(
        f"{at}: post_processor is {shown(kind)}; allowed with prune_vocab: ByteLevel, "
        "TemplateProcessing, Sequence of them, or none"
    )


def _pruned_vocab(path: Path, tokens: BytePairs, kept: KeptTokens) -> dict[str, int]:
    """Return the kept part of a file that maps tokens to ids."""
    vocab = read_checkpoint_json(path)
    for token, token_id in vocab.items():
        if tokens.ids.get(token) != token_id:
            raise ValueError(
                f"{path}: {shown(token)} has the id {shown(token_id)}, but {FILE} has "
                f"{shown(tokens.ids.get(token))}; take both from the same checkpoint"
            )
    return {token: kept.new_ids[old] for token, old in vocab.items() if old in kept.new_ids}


def _pruned_merges(path: Path, tokens: BytePairs, kept: KeptTokens) -> list[str]:
    """Return the kept lines of merges.txt, its comment included."""
    lines = decode_utf8(path.read_bytes(), str(path)).split("\n")
    comment = [lines[0]] if lines[0].startswith(COMMENT) else []
    pairs = [line for line in lines[len(comment) :] if line]
    if pairs != [" ".join(pair) for pair in tokens.merges]:
        raise ValueError(
            f"{path}: its {len(pairs)} merges are not the {len(tokens.merges)} of {FILE}; take "
            "both from the same checkpoint"
        )
    return [*comment, *(pairs[index] for index in tokens.kept_merges(kept.new_ids))]


def _write_json(content: Any, source: Path, target: Path) -> None:
    write_json(target, content)


def _write_compact(content: Any, source: Path, target: Path) -> None:
    write_text(target, json.dumps(content, ensure_ascii=False, separators=(",", ":")))


def _write_lines(lines: Sequence[str], source: Path, target: Path) -> None:
    write_text(target, "".join(f"{line}\n" for line in lines))
