"""Scenes, questions, and the helpers that all kinds of scenes share."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from . import words
from .canvas import DARK, INKS, LIGHT, AnnotatedImage, Canvas, Mark, TextStyle

PLACES = ("top left", "top right", "bottom left", "bottom right", "center")
DIRECTIONS = ("left", "right", "above", "below")
ORDINALS = ("first", "second", "third")
KINDS = ("words", "shapes", "chart", "form", "formula")
SIDE = 112  # pixels of a single image
SMALL_SIDE = 84  # pixels of each image of a multi-image question


@dataclass(frozen=True)
class Question:
    """A question; `wrong` is a pool of wrong answers, empty if the question has no options."""

    skill: str
    answer: str
    wrong: tuple[str, ...]
    slots: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scene:
    """Images with their questions; `kind` is the name of the scene function."""

    kind: str
    images: tuple[AnnotatedImage, ...]
    questions: tuple[Question, ...]


def others(pool: Sequence[str], answer: str) -> tuple[str, ...]:
    """Return `pool` without the answer."""
    return tuple(x for x in pool if x != answer)


def near_counts(count: int, rng: random.Random, lowest: int = 1) -> tuple[str, ...]:
    """Return three wrong counts, such that the right one has a random rank among the four."""
    first = max(lowest, count - rng.randint(0, 3))
    return others([str(first + i) for i in range(4)], str(count))


def wrong_strings(answer: str, make: Callable[[], str]) -> tuple[str, ...]:
    """Return four wrong strings from the generator of the right one.

    Without the image, all of them are equally likely.
    """
    strings: dict[str, None] = {}
    while len(strings) < 4:
        string = make()
        if string != answer:
            strings[string] = None
    return tuple(strings)


def number_or_word(rng: random.Random, words_share: float) -> Callable[[], str]:
    """Return a generator of short words, or of numbers of one length."""
    if rng.random() < words_share:
        return lambda: words.word(rng, 5)
    length = rng.randint(2, 4)
    return lambda: words.number(rng, length)


def new_canvas(rng: random.Random, side: int = SIDE) -> Canvas:
    """Create a square canvas, three times in four with a light background."""
    background = rng.choice(LIGHT if rng.random() < 0.75 else DARK)
    return Canvas(side, side, background, rng)


def text_colour(canvas: Canvas, rng: random.Random) -> str:
    """Choose a text colour that contrasts with the background."""
    if rng.random() < 0.4:
        return "white" if canvas.is_dark else "black"
    dull = ("yellow", "pink") if not canvas.is_dark else ("purple", "brown", "blue")
    return rng.choice([c for c in INKS if c not in dull])


def add_clutter(canvas: Canvas, rng: random.Random, amount: int) -> None:
    """Draw thin lines and dots in a colour near the background's."""
    shift = 38 if canvas.is_dark else -38
    red, green, blue = (min(255, max(0, v + shift)) for v in canvas.background)
    faint = (red, green, blue)
    for _ in range(rng.randint(0, amount)):
        ends = [(rng.uniform(0, canvas.width), rng.uniform(0, canvas.height)) for _ in range(2)]
        if rng.random() < 0.6:
            canvas.line(ends, faint, 1.0)
        else:
            canvas.disc(*ends[0], rng.uniform(1, 3), faint)


def fitting_style(rng: random.Random, face: str, length: int, side: int = SIDE) -> TextStyle:
    """Choose size and spacing for `length` glyphs, with at most one glyph per patch."""
    advance = rng.uniform(15.5, max(15.6, min(21.0, (side - 12) / length)))
    height = rng.uniform(14, min(23, advance * 1.35))
    return TextStyle(face, height, advance, weight=rng.uniform(1.8, 2.6) * height / 17)


def in_rows(marks: Sequence[Mark]) -> list[list[Mark]]:
    """Return the rows of an image from top to bottom, each from left to right."""
    rows: list[list[Mark]] = []
    for mark in sorted(marks, key=lambda m: m.y):
        if rows and mark.y - rows[-1][0].y < 12:  # pixels: less than the distance of two rows
            rows[-1].append(mark)
        else:
            rows.append([mark])
    return [sorted(row, key=lambda m: m.x) for row in rows]


def listing(marks: Sequence[Mark]) -> list[Question]:
    """Return the open question that asks for everything in the image, row by row.

    Glyphs of a row form one string; a shape is listed with its colour.
    """
    parts: list[str] = []
    for in_order in in_rows(marks):
        if string := "".join(m.glyph for m in in_order):
            parts.append(string)
        parts += [f"{m.colour} {m.shape}" for m in in_order if m.shape]
    return [Question("list", ", ".join(parts), ())]


def about(canvas: Canvas, kind: str) -> list[Question]:
    """Return the questions that apply to every single image."""
    tone = "dark" if canvas.is_dark else "light"
    open_questions = [] if kind == "formula" else listing(canvas.marks)
    return [
        *open_questions,
        Question("kind", kind, others(KINDS, kind)),
        Question("background", tone, others(("light", "dark"), tone)),
    ]
