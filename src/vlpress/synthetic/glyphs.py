"""A stroke font: 44 characters as polylines on a 5 x 7 grid.

The built-in images must be the same on every machine, so they cannot depend on installed fonts.
Each stroke is a string of `xy` points, x in 0..4 (left to right) and y in 0..6 (top to bottom). One
table serves several faces: round, angular, slanted, wide, hand-drawn, hollow.
"""

from __future__ import annotations

import math
import random
from itertools import pairwise

Point = tuple[float, float]
Stroke = list[Point]

WIDTH, HEIGHT = 4.0, 6.0  # of the grid of STROKES

STROKES: dict[str, tuple[str, ...]] = {
    "A": ("06 20 46", "14 34"),
    "B": ("33 03", "06 00 30 41 42 33 44 45 36 06"),
    "C": ("41 30 10 01 05 16 36 45",),
    "D": ("00 20 42 44 26 06 00",),
    "E": ("40 00 06 46", "03 33"),
    "F": ("40 00 06", "03 33"),
    "G": ("41 30 10 01 05 16 36 45 43 23",),
    "H": ("00 06", "40 46", "03 43"),
    "I": ("10 30", "20 26", "16 36"),
    "J": ("20 40", "30 35 26 16 05"),
    "K": ("00 06", "40 03 46"),
    "L": ("00 06 46",),
    "M": ("06 00 23 40 46",),
    "N": ("06 00 46 40",),
    "O": ("10 30 41 45 36 16 05 01 10",),
    "P": ("06 00 30 41 42 33 03",),
    "Q": ("10 30 41 45 36 16 05 01 10", "24 46"),
    "R": ("06 00 30 41 42 33 03", "23 46"),
    "S": ("41 30 10 01 02 13 33 44 45 36 16 05",),
    "T": ("00 40", "20 26"),
    "U": ("00 05 16 36 45 40",),
    "V": ("00 26 40",),
    "W": ("00 16 23 36 40",),
    "X": ("00 46", "40 06"),
    "Y": ("00 23 40", "23 26"),
    "Z": ("00 40 06 46",),
    "0": ("10 30 41 45 36 16 05 01 10", "31 15"),
    "1": ("02 20 26", "06 46"),
    "2": ("01 10 30 41 42 06 46",),
    "3": ("01 10 30 41 42 33 13", "33 44 45 36 16 05"),
    "4": ("36 30 04 44",),
    "5": ("40 00 03 33 44 45 36 16 05",),
    "6": ("40 20 02 05 16 36 45 44 33 13 04",),
    "7": ("00 40 16",),
    "8": ("13 02 01 10 30 41 42 33 13 04 05 16 36 45 44 33",),
    "9": ("06 26 44 41 30 10 01 02 13 33 42",),
    "a": ("12 32 43 46", "44 14 05 16 36 45"),
    "b": ("00 06 36 45 43 32 12 03",),
    "x": ("02 46", "42 06"),
    "y": ("02 24", "42 06"),
    "+": ("21 25", "03 43"),
    "-": ("03 43",),
    "=": ("02 42", "04 44"),
    ":": ("21 22", "24 25"),
}

GLYPHS = tuple(STROKES)


def strokes(character: str) -> list[Stroke]:
    """Return the polylines of one character, in grid units centred on the origin.

    Raises:
        ValueError: the character is not one of `GLYPHS`.
    """
    if character not in STROKES:
        raise ValueError(f"no glyph for {character!r}; the stroke font has {''.join(GLYPHS)}")
    return [
        [(int(p[0]) - WIDTH / 2, int(p[1]) - HEIGHT / 2) for p in stroke.split()]
        for stroke in STROKES[character]
    ]


def smooth(stroke: Stroke) -> Stroke:
    """Apply one round of Chaikin's corner cutting (CGIP 3, 1974); the ends do not move."""
    if len(stroke) < 3:
        return stroke
    closed = stroke[0] == stroke[-1]
    out: Stroke = [] if closed else [stroke[0]]
    for (ax, ay), (bx, by) in pairwise(stroke):
        out.append((0.75 * ax + 0.25 * bx, 0.75 * ay + 0.25 * by))
        out.append((0.25 * ax + 0.75 * bx, 0.25 * ay + 0.75 * by))
    out.append(out[0] if closed else stroke[-1])
    return out


def jitter(stroke: Stroke, amount: float, rng: random.Random) -> Stroke:
    """Move every point by up to `amount` grid units, like handwriting."""
    return [(x + rng.uniform(-amount, amount), y + rng.uniform(-amount, amount)) for x, y in stroke]


def transform(stroke: Stroke, *, scale: Point, slant: float, angle: float, origin: Point) -> Stroke:
    """Convert grid units to pixels: scale, shear by `slant`, rotate by `angle` degrees, move."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    out: Stroke = []
    for x, y in stroke:
        px, py = x * scale[0] - slant * y * scale[1], y * scale[1]
        out.append((origin[0] + px * cos - py * sin, origin[1] + px * sin + py * cos))
    return out
