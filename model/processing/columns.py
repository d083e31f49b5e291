"""Images and videos given in columns of a record instead of in its messages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .media import shorten
from .parts import INDEX, NOT_LISTS, Part, add_data, read_text

MARKS = {"image": "<image>", "video": "<video>"}


class MediaColumns:
    """Columns of images and videos; parts and marks of messages use their entries in order.

    Args:
        images: one entry or a list; None: there is no such column.
        videos: one entry or a list; None: there is no such column.
        allow_placeholders: whether parts without data are allowed if there is no column.
    """

    def __init__(self, images: object, videos: object, *, allow_placeholders: bool) -> None:
        self._allow_placeholders = allow_placeholders
        columns = {"image": images, "video": videos}
        self._entries = {
            kind: _listed(column) for kind, column in columns.items() if column is not None
        }
        self._uses = dict.fromkeys(MARKS, 0)  # parts and marks so far
        marks = "|".join(MARKS[kind] for kind in self._entries)
        self._marks = re.compile(f"({marks})") if marks else None

    def fill(self, part: Part, folder: Path | None) -> Iterator[Part]:
        """Yield a part with its data; a text is split at its marks.

        Args:
            part: result of `read_part`; without data it uses the next entry of its column.
            folder: base of relative paths; None: the current directory.

        Raises:
            FileNotFoundError: the file of an entry does not exist.
            ValueError: an entry cannot be read, the part has no data and there is no column, or
                its index is not that of the next entry.
        """
        kind = part["type"]
        if INDEX in part:
            part = self._without_index(part)
        if kind == "text":
            yield from self._fill_text(part, folder)
        elif kind not in part and kind in self._entries:
            yield self._filled(part, folder)
        elif kind in part:
            yield part
        elif self._allow_placeholders:
            self._uses[kind] += 1
            yield part
        else:
            raise ValueError(
                f"{kind} part without its {kind}; give it in the part, or all {kind}s in a column"
            )

    def check_counts(self) -> None:
        """Check that the messages used each entry once.

        Raises:
            ValueError: parts and marks differ in number from the entries.
        """
        for kind, entries in self._entries.items():
            if self._uses[kind] != len(entries):
                raise ValueError(
                    f"the messages have {self._uses[kind]} places for {len(entries)} {kind}s; "
                    f"write {MARKS[kind]} or a part of type {kind} once for each"
                )

    def _without_index(self, part: Part) -> Part:
        """Check the index of a part's entry, which must be the next one, and remove it."""
        kind, index, expected = part["type"], part[INDEX], self._uses[part["type"]]
        if kind in part:
            raise ValueError(f"{kind} part with data and index {shorten(index)}; keep one of them")
        if index != expected or isinstance(index, bool):
            raise ValueError(
                f"{kind} part with index {shorten(index)} instead of {expected}; {kind}s of a "
                "column are used in order, counted from 0"
            )
        return {key: value for key, value in part.items() if key != INDEX}

    def _fill_text(self, part: Part, folder: Path | None) -> Iterator[Part]:
        pieces = self._marks.split(part["text"]) if self._marks else [part["text"]]
        if len(pieces) == 1:
            yield part
            return
        kinds = {MARKS[kind]: kind for kind in self._entries}
        for piece in pieces:
            if piece in kinds:
                yield self._filled({"type": kinds[piece]}, folder)
            elif piece:
                yield read_text(piece)

    def _filled(self, part: Part, folder: Path | None) -> Part:
        kind = part["type"]
        index, entries = self._uses[kind], self._entries[kind]
        self._uses[kind] += 1
        # Beyond the last entry `check_counts` will report the number.
        return add_data(part, entries[index], folder) if index < len(entries) else part


def _listed(column: object) -> Sequence[Any]:
    if isinstance(column, Sequence) and not isinstance(column, NOT_LISTS):
        return column
    return [column]
