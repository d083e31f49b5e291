"""Broken rows: what makes a row of any benchmark impossible to ask, found without a model.

The rows that only a model's tokenizer and context length rule out are found by `askable`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace

from .files.table import Faults, Row, accept_faults
from .prompts import Builder
from .task import Task, is_broken, with_fault

# How both model families write the places of images and videos: in a question they would count as
# images that are not there.
PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>")


def text_faults(rows: Iterable[Row], content: Builder, style: str) -> Faults:
    """Rows with text that no prompt can hold: placeholder tokens, half a surrogate pair.

    Args:
        rows: sound so far.
        content: makes a prompt of each.
        style: its layout.
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
    """The task with further rows broken: not asked, named in its notes, counted as wrong.

    Args:
        task: as opened.
        faults: id of a row -> what is wrong with it.

    Raises:
        ValueError: more than a few rows of the file are broken now.
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
