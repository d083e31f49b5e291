"""The changed answers with their pictures: what a quantized model got wrong, one by one."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...results import StoredRun, StoredTask
from ..thumbnails import read_picture

SHOWN = 200  # cards per benchmark: the page stays small enough to send
TEXT = 2000  # characters of an answer or a question; a rambling one would fill the page
KINDS = {
    "right_to_wrong": "right to wrong",
    "wrong_to_right": "wrong to right",
    "wrong_to_wrong": "wrong to another wrong",
}
Flip = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """A picture inside the page."""

    uri: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class Answer:
    """What one model said."""

    who: str
    text: str
    is_right: bool


@dataclass(frozen=True)
class Card:
    """One changed answer."""

    benchmark: int  # places in the gallery's filters
    category: int
    change: str
    change_words: str
    category_name: str
    row: str
    question: str
    choices: Mapping[str, str]
    gold: str
    answers: tuple[Answer, Answer]
    pictures: tuple[Picture, ...]


@dataclass
class Bench:
    """The changed answers of one benchmark."""

    name: str
    synthetic: bool
    counts: Mapping[str, int]
    identical: float  # percent of answers
    cards: list[Card] = field(default_factory=list)
    left_out: int = 0
    lost_pictures: int = 0  # named but missing or damaged


@dataclass(frozen=True)
class Gallery:
    """All changed answers, and what they can be filtered by."""

    benches: list[Bench]
    categories: list[tuple[int, str]]  # benchmark, name; in the order of their places
    kinds: Mapping[str, tuple[str, int]]  # words and number of cards; only kinds that occur
    pictures_kept: bool

    @property
    def cards(self) -> int:
        """How many are shown."""
        return sum(len(bench.cards) for bench in self.benches)


def build_gallery(
    report: Mapping[str, Any], flips: Sequence[Flip], base: StoredRun, candidate: StoredRun
) -> Gallery:
    """Make cards of changed answers; losses come first.

    Args:
        report: content of `report.json`.
        flips: all changed answers.
        base: the original's run; pictures are looked for here too.
        candidate: the other run.
    """
    benches: list[Bench] = []
    categories: dict[tuple[int, str], int] = {}
    order = list(KINDS)
    for place, (name, entry) in enumerate(report["benchmarks"].items()):
        mine = [flip for flip in flips if flip["benchmark"] == name]
        mine.sort(key=lambda flip: order.index(flip["change"]))
        bench = Bench(name, entry["synthetic"], entry["flips"], entry["identical_answers"])
        bench.left_out = len(mine[SHOWN:])
        shelf = _Shelf([candidate.tasks[name], base.tasks[name]])
        for flip in mine[:SHOWN]:
            key = (place, flip["category"])
            category = categories.setdefault(key, len(categories))
            bench.cards.append(_card(flip, place, category, shelf))
        bench.lost_pictures = shelf.lost
        benches.append(bench)
    counts = [card.change for bench in benches for card in bench.cards]
    kinds = {k: (words, counts.count(k)) for k, words in KINDS.items() if k in counts}
    kept = any("pictures" in i for t in (*base.tasks.values(), *candidate.tasks.values())
               for i in t.items)  # fmt: skip
    return Gallery(benches, list(categories), kinds, kept)


class _Shelf:
    """Finds the pictures of a task's rows in the folders that may hold them."""

    def __init__(self, tasks: Sequence[StoredTask]) -> None:
        self.lost = 0
        self._tasks = tasks
        self._names: dict[str, list[object]] = {}
        for task in reversed(tasks):
            for item in task.items:
                if isinstance(names := item.get("pictures"), list):
                    self._names[item["id"]] = names

    def pictures(self, row: str) -> tuple[Picture, ...]:
        names = self._names.get(row, [])
        found = []
        for number, name in enumerate(names, start=1):
            stored = (read_picture(task.folder, name) for task in self._tasks)
            kept = next((picture for picture in stored if picture), None)
            if kept is None:
                self.lost += 1
                continue
            data, (width, height) = kept
            uri = "data:image/webp;base64," + base64.b64encode(data).decode()
            which = f"Picture {number} of {len(names)}" if len(names) > 1 else "The picture"
            alt = f"{which} that question {row} is about"
            found.append(Picture(uri, width, height, alt))
        return tuple(found)


def _card(flip: Flip, benchmark: int, category: int, shelf: _Shelf) -> Card:
    before, _, after = flip["change"].partition("_to_")
    return Card(
        benchmark=benchmark,
        category=category,
        change=flip["change"],
        change_words=KINDS[flip["change"]],
        category_name=visible(flip["category"]),
        row=visible(flip["row"]),
        question=visible(flip["question"]),
        choices={key: visible(text) for key, text in (flip.get("choices") or {}).items()},
        gold=visible(flip["gold"]),
        answers=(
            Answer("base", visible(flip["base"]), before == "right"),
            Answer("candidate", visible(flip["candidate"]), after == "right"),
        ),
        pictures=shelf.pictures(flip["row"]),
    )


def visible(value: object, limit: int = TEXT) -> str:
    """A text as a page can show it: bounded, control characters as their pictures."""
    text = str(value)
    shown = "".join(_shown(c) for c in text[:limit])
    return shown if len(text) <= limit else f"{shown}… ({len(text):,} characters)"


def _shown(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or (code >= 32 and not 0x7F <= code < 0xA0):
        return "\ufffd" if 0xD800 <= code < 0xE000 else character
    return chr(0x2400 + code) if code < 32 else "\ufffd"
