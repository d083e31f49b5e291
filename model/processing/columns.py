"""Images and videos in columns beside the messages that they belong to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .media import shorten
from .parts import INDEX, NOT_LISTS, Part, read_text, with_data

MARKS = {"image": "<image>", "video": "<video>"}


class Columns:
    """Gives the entries of the columns out, in order.

    Args:
        images: One entry or a list of them; None if there is no such column.
        videos: The same.
        bare: Whether parts without data may stay so where there is no column.
    """

    def __init__(self, images: object, videos: object, *, bare: bool) -> None:
        self._bare = bare
        columns = {"image": images, "video": videos}
        self._entries = {
            kind: _listed(column) for kind, column in columns.items() if column is not None
        }
        self._places = dict.fromkeys(MARKS, 0)
        marks = "|".join(MARKS[kind] for kind in self._entries)
        self._marks = re.compile(f"({marks})") if marks else None

    def fill(self, part: Part, folder: Path | None) -> Iterator[Part]:
        """The part, its data taken from a column where it has none; a text cut at its marks.

        Raises:
            FileNotFoundError: An entry names a file that does not exist.
            ValueError: An entry cannot be read, the part has no data and there is no column, or
                its index is another than that of the next entry.
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
        elif self._bare:
            self._places[kind] += 1
            yield part
        else:
            raise ValueError(
                f"{kind} part without its {kind}; give it in the part, or all {kind}s in a column"
            )

    def check_used_up(self) -> None:
        """Whether there were as many places as entries.

        Raises:
            ValueError: There were not.
        """
        for kind, entries in self._entries.items():
            if self._places[kind] != len(entries):
                raise ValueError(
                    f"the messages have {self._places[kind]} places for {len(entries)} {kind}s; "
                    f"write {MARKS[kind]} or a part of type {kind} once for each"
                )

    def _without_index(self, part: Part) -> Part:
        """The part without the index of its entry, which says nothing more: the next is taken."""
        kind, index, place = part["type"], part[INDEX], self._places[part["type"]]
        if kind in part:
            raise ValueError(f"{kind} part with data and index {shorten(index)}; keep one of them")
        if index != place or isinstance(index, bool):
            raise ValueError(
                f"{kind} part with index {shorten(index)} in place {place}; {kind}s of a column "
                "are taken in order, counted from 0"
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
        place, entries = self._places[kind], self._entries[kind]
        self._places[kind] += 1
        # Too many places are told by `check_used_up`, with their number.
        return with_data(part, entries[place], folder) if place < len(entries) else part


def _listed(column: object) -> Sequence[Any]:
    if isinstance(column, Sequence) and not isinstance(column, NOT_LISTS):
        return column
    return [column]
