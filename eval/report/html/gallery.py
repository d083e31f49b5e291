"""Gallery of flips: question, image and both answers, one card each."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...results import StoredRun, StoredTask
from ..flips import list_samples
from ..thumbnails import read_thumbnail

CARDS_SHOWN = 200  # per benchmark: keeps the page small enough to send
TEXT_LIMIT = 2000  # characters of an answer or a question: a repetitive one would fill the page
KINDS = {
    "right_to_wrong": "right to wrong",
    "wrong_to_right": "wrong to right",
    "wrong_to_wrong": "wrong to another wrong",
}
SAME = {"both_right": "both right", "both_wrong": "both wrong"}
SAMPLES_SHOWN = 2  # per benchmark, if nothing flipped
Flip = Mapping[str, Any]


@dataclass(frozen=True)
class EmbeddedImage:
    """An image inside the page."""

    uri: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class CardAnswer:
    """The answer of one model."""

    model: str  # base or candidate
    text: str
    is_right: bool


@dataclass(frozen=True)
class Card:
    """One flip."""

    benchmark: int  # indices in the gallery's filters
    category: int
    change: str
    change_words: str
    category_name: str
    row: str
    question: str
    choices: Mapping[str, str]
    gold: str
    answers: tuple[CardAnswer, CardAnswer]
    images: tuple[EmbeddedImage, ...]


@dataclass(frozen=True)
class BenchmarkCards:
    """The flips of one benchmark."""

    name: str
    synthetic: bool
    counts: Mapping[str, int]
    identical: float  # percent of answers
    cards: list[Card]
    samples: list[Card]  # questions that did not flip; empty if a benchmark has a flip
    left_out: int  # flips without a card
    lost_images: int  # named but missing or damaged


@dataclass(frozen=True)
class Gallery:
    """All flips, and the values of their filters."""

    benchmarks: list[BenchmarkCards]
    categories: list[tuple[int, str]]  # index of the benchmark, name; in the order of indices
    kinds: Mapping[str, tuple[str, int]]  # words and number of cards; only kinds that occur
    has_images: bool

    @property
    def cards(self) -> int:
        """Number of cards on the page."""
        return sum(len(bench.cards) for bench in self.benchmarks)


def build_gallery(
    report: Mapping[str, Any], flips: Sequence[Flip], base: StoredRun, candidate: StoredRun
) -> Gallery:
    """Build the cards of all benchmarks; losses come first.

    Args:
        report: content of `report.json`.
        flips: all flips, as in `flips.jsonl`.
        base: run of the original, whose images replace missing ones of the candidate.
        candidate: run of the candidate.
    """
    benchmarks: list[BenchmarkCards] = []
    categories: dict[tuple[int, str], int] = {}
    order = list(KINDS)
    for index, (name, entry) in enumerate(report["benchmarks"].items()):
        of_benchmark = [flip for flip in flips if flip["benchmark"] == name]
        of_benchmark.sort(key=lambda flip: order.index(flip["change"]))
        images = _ImageFinder([candidate.tasks[name], base.tasks[name]])
        cards = []
        for flip in of_benchmark[:CARDS_SHOWN]:
            category = categories.setdefault((index, flip["category"]), len(categories))
            cards.append(_card(flip, index, category, images))
        samples = []
        if not flips:
            unchanged = list_samples(base.tasks[name], candidate.tasks[name], SAMPLES_SHOWN)
            samples = [_card(sample, index, 0, images) for sample in unchanged]
        benchmarks.append(
            BenchmarkCards(
                name,
                entry["synthetic"],
                entry["flips"],
                entry["identical_answers"],
                cards,
                samples,
                len(of_benchmark[CARDS_SHOWN:]),
                images.lost,
            )
        )
    changes = [card.change for bench in benchmarks for card in bench.cards]
    kinds = {k: (words, changes.count(k)) for k, words in KINDS.items() if k in changes}
    tasks = (*base.tasks.values(), *candidate.tasks.values())
    has_images = any("pictures" in item for task in tasks for item in task.items)
    return Gallery(benchmarks, list(categories), kinds, has_images)


class _ImageFinder:
    """Reads the images of a task's rows from the first folder that has them.

    Args:
        tasks: stored tasks with the same rows, the preferred one first.
    """

    def __init__(self, tasks: Sequence[StoredTask]) -> None:
        self.lost = 0  # images that are missing or damaged in every folder
        self._tasks = tasks
        self._names: dict[str, list[object]] = {}
        for task in reversed(tasks):
            for item in task.items:
                if isinstance(names := item.get("pictures"), list):
                    self._names[item["id"]] = names

    def images(self, row: str) -> tuple[EmbeddedImage, ...]:
        names = self._names.get(row, [])
        images = []
        for number, name in enumerate(names, start=1):
            stored = (read_thumbnail(task.folder, name) for task in self._tasks)
            thumbnail = next((image for image in stored if image), None)
            if thumbnail is None:
                self.lost += 1
                continue
            data, (width, height) = thumbnail
            uri = "data:image/webp;base64," + base64.b64encode(data).decode()
            alt = f"Image {number} of {len(names)}" if len(names) > 1 else "Image"
            images.append(EmbeddedImage(uri, width, height, f"{alt} of question {row}"))
        return tuple(images)


def _card(flip: Flip, benchmark: int, category: int, images: _ImageFinder) -> Card:
    before, _, after = flip["change"].removeprefix("both_").partition("_to_")
    return Card(
        benchmark=benchmark,
        category=category,
        change=flip["change"],
        change_words=(KINDS | SAME)[flip["change"]],
        category_name=visible(flip["category"]),
        row=visible(flip["row"]),
        question=visible(flip["question"]),
        choices={key: visible(text) for key, text in (flip.get("choices") or {}).items()},
        gold=visible(flip["gold"]),
        answers=(
            CardAnswer(_side("base", flip), visible(flip["base"]), before == "right"),
            CardAnswer(
                _side("candidate", flip),
                visible(flip["candidate"]),
                (after or before) == "right",
            ),
        ),
        images=images.images(flip["row"]),
    )


def _side(side: str, flip: Flip) -> str:
    """The name of a model; of sampled answers with the number of samples that are right."""
    if (right := flip.get("samples_right")) is None:
        return side
    return f"{side}, {sum(right[side])} of {len(right[side])} samples right"


def visible(value: object, limit: int = TEXT_LIMIT) -> str:
    """Make a text displayable: bounded, control characters as their Unicode symbols."""
    text = str(value)
    shown = "".join(_displayable(c) for c in text[:limit])
    return shown if len(text) <= limit else f"{shown}… ({len(text):,} characters)"


def _displayable(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or (code >= 32 and not 0x7F <= code < 0xA0):
        return "\ufffd" if 0xD800 <= code < 0xE000 else character  # lone surrogates
    return chr(0x2400 + code) if code < 32 else "\ufffd"
