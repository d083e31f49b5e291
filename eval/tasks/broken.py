"""Broken rows: rows of a benchmark that no model can be given, found without a model.

Rows that a model's tokenizer or context length excludes are found by `askable`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace

from .files.rows import Faults, Row, accept_faults
from .prompts import Builder
from .task import Task, is_broken, with_fault

# Placeholder tokens of images and videos in both model families: in a question they would count as
# images that do not exist.
PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>")


def find_text_faults(rows: Iterable[Row], content: Builder, style: str) -> Faults:
    """Return the rows whose text cannot be in a prompt: placeholder tokens, lone surrogates.

    Args:
        rows: rows without other faults.
        content: builds the prompt of a row.
        style: prompt layout.
    """
    faults: Faults = {}
    for row in rows:
        text = "\n".join(part.get("text", "") for part in content(row, style))
        if token := next((token for token in PLACEHOLDERS if token in text), ""):
            faults[row.index] = f"its text holds the placeholder token {token}; take it out"
        elif not _is_encodable(text):
            faults[row.index] = "its text holds half a surrogate pair; write the character whole"
    return faults


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def mark_broken(task: Task, faults: Mapping[str, str]) -> Task:
    """Mark further rows as broken: removed from the items, named in the notes, counted as wrong.

    Args:
        task: an opened task.
        faults: id of a row -> reason; rows that are broken already keep their reason.

    Raises:
        ValueError: too many rows are broken, see `accept_faults`.
    """
    fields = tuple(
        with_fault(f, None if is_broken(f) else faults.get(f["id"])) for f in task.fields
    )
    broken = {f["id"]: f["fault"] for f in fields if is_broken(f)}
    items = tuple(item for item in task.items if item.id not in broken)
    return replace(
        task,
        items=items,
        fields=fields,
        notes=(*task.deviations, *accept_faults(task.source, broken, len(fields))),
        fingerprint={
            **task.fingerprint,
            "broken": list(broken),
            "items": hashlib.sha256("\n".join(item.id for item in items).encode()).hexdigest(),
        },
    )
