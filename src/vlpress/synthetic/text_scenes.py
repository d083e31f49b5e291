"""Scenes of text: single strings, signs, lines, forms and formulas."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from . import words
from .canvas import INKS, TextStyle
from .scene import (
    ORDINALS,
    SIDE,
    Question,
    Scene,
    about,
    add_clutter,
    fitting_style,
    new_canvas,
    number_or_word,
    text_colour,
    wrong_strings,
)

TEXT_KINDS = ("regular", "irregular", "artistic", "handwriting", "digits", "non_semantic")


def text(rng: random.Random, kind: str = "") -> Scene:
    """Draw one string in the style of `kind` (one of `TEXT_KINDS`, random if empty)."""
    kind = kind or rng.choice(TEXT_KINDS)
    canvas = new_canvas(rng)
    length = rng.randint(2, 6) if kind == "digits" else rng.randint(3, 5)
    sources: dict[str, Callable[[], str]] = {
        "digits": lambda: words.number(rng, length),
        "non_semantic": lambda: (words.letters if length % 2 else words.code)(rng, length),
    }
    make = sources.get(kind, lambda: words.word(rng))
    string = make()
    faces = {
        "handwriting": ("hand",),
        "artistic": ("hollow", "wide", "angular"),
    }.get(kind, ("sans", "sans", "round", "slanted", "angular"))
    style = fitting_style(rng, rng.choice(faces), len(string))
    angle = wave = 0.0
    if kind == "irregular":
        angle = rng.choice((-1, 1)) * rng.uniform(8, 24)
        wave = 0.0 if rng.random() < 0.5 else rng.uniform(2, 5)
    elif kind == "handwriting":
        angle = rng.uniform(-6, 6)
    elif kind == "artistic":
        wave = rng.uniform(0, 4)
    style = TextStyle(style.face, style.height, style.advance, angle, wave, style.weight)
    add_clutter(canvas, rng, 6)
    reach = style.advance * (len(string) - 1) / 2 + 8
    slack = max(0.0, SIDE / 2 - reach - 2)
    x = SIDE / 2 + rng.uniform(-slack, slack)
    margin = 16 + abs(angle) * 1.1 + wave
    y = rng.uniform(margin, SIDE - margin)
    colour = text_colour(canvas, rng)
    if kind == "artistic" and rng.random() < 0.6:
        colours = [c for c in INKS if c not in ("yellow", "pink", "brown", "blue")]
        for i, character in enumerate(string):
            along = (i - (len(string) - 1) / 2) * style.advance
            lift = wave if i % 2 else -wave
            canvas.glyph(character, x + along, y + lift, rng.choice(colours), style, rank=i + 1)
    else:
        canvas.text(string, x, y, colour, style)
    skill = "number" if kind == "digits" else "read"
    questions = [Question(skill, string, wrong_strings(string, make))]
    return Scene("text", (canvas.finish(),), (*questions, *about(canvas, "words")))


def signs(rng: random.Random) -> Scene:
    """Draw two or three words: each in its own ink, or white on signs of different colours."""
    canvas = new_canvas(rng)
    as_signs = rng.random() < 0.5
    count = rng.randint(2, 3)
    dull = ("yellow", "pink") if not canvas.is_dark else ("purple", "brown", "blue")
    pool = [c for c in INKS if c not in (("yellow", "pink") if as_signs else dull)]
    colours = rng.sample(pool, count)
    rows = [SIDE * (i + 0.5) / count + rng.uniform(-4, 4) for i in range(count)]
    add_clutter(canvas, rng, 4)
    questions = []
    for line, (colour, y) in enumerate(zip(colours, rows, strict=True), 1):
        make = number_or_word(rng, 0.7)
        string = make()
        style = fitting_style(rng, rng.choice(("sans", "round", "angular")), len(string))
        reach = style.advance * (len(string) - 1) / 2
        slack = max(0.0, SIDE / 2 - reach - 12)
        x = SIDE / 2 + rng.uniform(-slack, slack)
        if as_signs:
            half = style.height * 0.5 + 5
            canvas.box(x - reach - 11, y - half, x + reach + 11, y + half, canvas.ink(colour))
            canvas.text(string, x, y, "white", style, on=colour, line=line)
        else:
            canvas.text(string, x, y, colour, style, line=line)
        skill = "sign" if as_signs else "ink"
        questions.append(Question(skill, string, wrong_strings(string, make), {"colour": colour}))
    return Scene("signs", (canvas.finish(),), (*questions, *about(canvas, "words")))


def lines(rng: random.Random) -> Scene:
    """Draw a small document of two to four lines, flush left."""
    canvas = new_canvas(rng)
    count = rng.randint(2, 4)
    colour = text_colour(canvas, rng)
    face = rng.choice(("sans", "round", "slanted", "angular"))
    questions = []
    top = rng.uniform(13, 15)
    pitch = (SIDE - 2 * top) / max(count - 1, 2)
    for i in range(count):
        make = number_or_word(rng, 0.75)
        string = make()
        style = TextStyle(face, rng.uniform(14, 17), 16.0, weight=rng.uniform(1.8, 2.3))
        x = 14 + style.advance * (len(string) - 1) / 2 + rng.uniform(0, 8)
        canvas.text(string, x, top + i * pitch, colour, style, line=i + 1)
        ordinals = ([ORDINALS[i]] if i < 3 else []) + (["last"] if i == count - 1 else [])
        slots = {"ordinal": rng.choice(ordinals)}
        questions.append(Question("line", string, wrong_strings(string, make), slots))
    return Scene("lines", (canvas.finish(),), (*questions, *about(canvas, "words")))


def form(rng: random.Random) -> Scene:
    """Draw two to four lines `KEY:VALUE`."""
    canvas = new_canvas(rng)
    count = rng.randint(2, 4)
    colour = text_colour(canvas, rng)
    face = rng.choice(("sans", "round", "angular"))
    pitch = 84 / max(count - 1, 2)
    questions = []
    for i, key in enumerate(rng.sample(words.KEYS, count)):
        length = rng.randint(1, 3)
        value = words.number(rng, length)
        style = TextStyle(face, rng.uniform(14, 16), 15.0, weight=rng.uniform(1.8, 2.2))
        string = f"{key}:{value}"
        x = 9 + style.advance * (len(string) - 1) / 2 + rng.uniform(0, 2)
        canvas.text(string, x, 14 + i * pitch, colour, style, line=i + 1, skip=len(key) + 1)
        wrong = wrong_strings(value, partial(words.number, rng, length))
        questions.append(Question("value", value, wrong, {"key": key}))
    return Scene("form", (canvas.finish(),), (*questions, *about(canvas, "form")))


def formula(rng: random.Random) -> Scene:
    """Draw a handwritten formula."""
    canvas = new_canvas(rng)
    parts = words.formula(rng)
    style = fitting_style(rng, "hand", len(parts))
    small = TextStyle("hand", style.height * 0.72, style.advance, weight=style.weight * 0.85)
    y = rng.uniform(24, SIDE - 20)
    slack = SIDE / 2 - style.advance * (len(parts) - 1) / 2 - 10
    x = SIDE / 2 + rng.uniform(-1, 1) * max(0.0, slack)
    colour = text_colour(canvas, rng)
    for i, (character, raised) in enumerate(parts):
        along = (i - (len(parts) - 1) / 2) * style.advance
        lift = style.height * 0.45 if raised else 0.0
        used = small if raised else style
        canvas.glyph(character, x + along, y - lift, colour, used, rank=i + 1)
    latex = words.latex(parts)
    wrong = wrong_strings(latex, lambda: words.latex(words.formula(rng)))
    question = Question("formula", latex, wrong)
    return Scene("formula", (canvas.finish(),), (question, *about(canvas, "formula")))
