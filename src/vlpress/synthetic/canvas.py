"""A small drawing canvas that records its marks.

Every mark (glyph or shape) is recorded with its centre. These annotations are the ground truth of
an image: questions are derived from them, and the training of the built-in model uses them as
targets of an auxiliary loss. Images are drawn at twice their size and reduced, for anti-aliasing.
They do not depend on installed fonts (one face is part of Pillow).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from . import glyphs

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (215, 30, 35),
    "green": (25, 150, 55),
    "blue": (30, 80, 215),
    "yellow": (240, 200, 20),
    "purple": (130, 40, 165),
    "orange": (245, 125, 20),
    "pink": (250, 130, 190),
    "brown": (120, 70, 30),
    "black": (15, 15, 15),
    "white": (250, 250, 250),
}
INKS = tuple(COLOURS)[:8]  # colours of questions
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "ring", "moon")
MARKS = (*SHAPES, "bar", "frame")
SIZES = ("small", "large")
ROLES = ("odd colour", "odd shape", "next")
LIGHT: tuple[Colour, ...] = ((255, 255, 255), (240, 240, 232), (225, 235, 245), (235, 225, 215))
DARK: tuple[Colour, ...] = ((25, 25, 30), (20, 30, 60), (45, 30, 40), (25, 50, 45))
FACES = ("sans", "round", "angular", "slanted", "wide", "hand", "hollow")
SUPERSAMPLE = 2


@dataclass(frozen=True)
class Mark:
    """A glyph or shape on the canvas, with its centre in pixels."""

    x: float
    y: float
    colour: str
    glyph: str = ""
    shape: str = ""
    size: str = ""
    rank: int = 0  # position of a glyph in its string, from 1; 0 if no question covers it
    line: int = 0  # line of a glyph, from 1
    blurred: bool = False
    role: str = ""  # one of ROLES, if this mark is the answer to such a question


@dataclass(frozen=True)
class AnnotatedImage:
    """A finished image with its annotations."""

    image: Image.Image
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class TextStyle:
    """Style of a line of text: `height` and `advance` in pixels, `angle` in degrees."""

    face: str = "sans"
    height: float = 16.0
    advance: float = 16.0
    angle: float = 0.0
    wave: float = 0.0  # amplitude of the baseline in pixels
    weight: float = 2.4  # stroke width in pixels


@dataclass
class Canvas:
    """A canvas of `width` x `height` pixels; coordinates are those of the final image."""

    width: int
    height: int
    background: Colour
    rng: random.Random
    marks: list[Mark] = field(default_factory=list)

    def __post_init__(self) -> None:
        size = (self.width * SUPERSAMPLE, self.height * SUPERSAMPLE)
        self._image = Image.new("RGB", size, self.background)
        self._pen = ImageDraw.Draw(self._image)

    @property
    def is_dark(self) -> bool:
        """Whether the background is dark, so that light ink is needed."""
        return sum(self.background) < 300

    def ink(self, colour: str) -> Colour:
        """Return the RGB of a named colour with jitter, so that a name covers a range of values."""
        red, green, blue = (
            min(255, max(0, v + self.rng.randint(-10, 10))) for v in COLOURS[colour]
        )
        return red, green, blue

    def finish(self) -> AnnotatedImage:
        """Reduce the image to its final size."""
        return AnnotatedImage(self._image.reduce(SUPERSAMPLE), tuple(self.marks))

    def line(self, points: Sequence[glyphs.Point], fill: Colour, width: float) -> None:
        """Draw a polyline with round joints, `width` in pixels; records no mark."""
        scaled = [(x * SUPERSAMPLE, y * SUPERSAMPLE) for x, y in points]
        pen_width = max(1, round(width * SUPERSAMPLE))
        self._pen.line(scaled, fill=fill, width=pen_width, joint="curve")
        radius = (pen_width - 1) / 2
        for x, y in (scaled[0], scaled[-1]):
            self._pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)

    def polygon(self, points: Sequence[glyphs.Point], fill: Colour) -> None:
        """Draw a filled polygon; records no mark."""
        self._pen.polygon([(x * SUPERSAMPLE, y * SUPERSAMPLE) for x, y in points], fill=fill)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour) -> None:
        """Draw a filled rectangle; records no mark."""
        corners = tuple(v * SUPERSAMPLE for v in (x0, y0, x1, y1))
        self._pen.rectangle(corners, fill=fill)

    def disc(self, x: float, y: float, radius: float, fill: Colour) -> None:
        """Draw a filled circle; records no mark."""
        corners = tuple(v * SUPERSAMPLE for v in (x - radius, y - radius, x + radius, y + radius))
        self._pen.ellipse(corners, fill=fill)

    def glyph(
        self, character: str, x: float, y: float, colour: str, style: TextStyle, *,
        on: str = "", rank: int = 1, line: int = 1,
    ) -> None:  # fmt: skip
        """Draw a character centred at (x, y); `on` names the colour of the sign it is on."""
        fill = self.ink(colour)
        if style.face == "sans":
            self._paste_sans(character, x, y, fill, style)
        else:
            self._stroke(character, x, y, fill, style)
        self.marks.append(Mark(x, y, on or colour, glyph=character, rank=rank, line=line))

    def text(
        self, string: str, x: float, y: float, colour: str, style: TextStyle, *,
        on: str = "", line: int = 1, skip: int = 0,
    ) -> None:  # fmt: skip
        """Draw a line of text centred at (x, y); the first `skip` glyphs get no rank."""
        cos, sin = math.cos(math.radians(style.angle)), math.sin(math.radians(style.angle))
        for i, character in enumerate(string):
            along = (i - (len(string) - 1) / 2) * style.advance
            up = style.wave * math.sin(2.2 * i + 0.5)
            self.glyph(
                character, x + along * cos - up * sin, y + along * sin + up * cos, colour, style,
                on=on, rank=max(0, i + 1 - skip), line=line,
            )  # fmt: skip

    def _stroke(self, character: str, x: float, y: float, fill: Colour, style: TextStyle) -> None:
        unit = style.height / glyphs.HEIGHT
        scale = (unit * (1.15 if style.face == "wide" else 0.95), unit)
        slant = 0.25 if style.face == "slanted" else 0.0
        for stroke in glyphs.strokes(character):
            if style.face == "hand":
                stroke = glyphs.jitter(stroke, 0.28, self.rng)
            if style.face != "angular":
                stroke = glyphs.smooth(glyphs.smooth(stroke))
            points = glyphs.transform(
                stroke, scale=scale, slant=slant, angle=style.angle, origin=(x, y)
            )
            if style.face == "hollow":
                self.line(points, fill, style.weight + 2.2)
            else:
                self.line(points, fill, style.weight)
        if style.face == "hollow":
            for stroke in glyphs.strokes(character):
                smoothed = glyphs.smooth(glyphs.smooth(stroke))
                points = glyphs.transform(
                    smoothed, scale=scale, slant=slant, angle=style.angle, origin=(x, y)
                )
                self.line(points, self.background, max(0.8, style.weight - 1.2))

    def _paste_sans(
        self, character: str, x: float, y: float, fill: Colour, style: TextStyle
    ) -> None:
        mask = _sans_mask(character, round(style.height * 1.35 * SUPERSAMPLE))
        if style.angle:
            mask = mask.rotate(-style.angle, resample=Image.Resampling.BILINEAR, expand=True)
        corner = (
            round(x * SUPERSAMPLE - mask.width / 2),
            round(y * SUPERSAMPLE - mask.height / 2),
        )
        self._image.paste(fill, (*corner, corner[0] + mask.width, corner[1] + mask.height), mask)

    def shape(
        self, kind: str, x: float, y: float, radius: float, colour: str, size: str, *,
        role: str = "",
    ) -> None:  # fmt: skip
        """Draw a filled shape of `SHAPES` with its centre at (x, y)."""
        fill = self.ink(colour)
        if kind == "circle":
            self.disc(x, y, radius, fill)
        elif kind == "ring":
            self.disc(x, y, radius, fill)
            self.disc(x, y, radius * 0.5, self.background)
        elif kind == "moon":
            self.disc(x, y, radius, fill)
            self.disc(x + radius * 0.55, y - radius * 0.25, radius * 0.8, self.background)
        elif kind == "cross":
            arm = radius * 0.36
            self.box(x - radius, y - arm, x + radius, y + arm, fill)
            self.box(x - arm, y - radius, x + arm, y + radius, fill)
        else:
            self.polygon([(x + radius * px, y + radius * py) for px, py in _outline(kind)], fill)
        self.marks.append(Mark(x, y, colour, shape=kind, size=size, role=role))


def _outline(kind: str) -> list[glyphs.Point]:
    """Return the corners of a polygon shape of radius 1."""
    if kind == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if kind == "diamond":
        return [(0, -1.1), (0.75, 0), (0, 1.1), (-0.75, 0)]
    if kind == "triangle":
        return [(0, -1), (0.95, 0.8), (-0.95, 0.8)]
    points: list[glyphs.Point] = []  # star
    for i in range(10):
        reach = 1.1 if i % 2 == 0 else 0.45
        turn = math.pi * (i / 5 - 0.5)
        points.append((reach * math.cos(turn), reach * math.sin(turn)))
    return points


@lru_cache(maxsize=4096)
def _sans_mask(character: str, size: int) -> Image.Image:
    """Render a character in Pillow's built-in scalable face, cropped to its ink."""
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(character)
    mask = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2), 0)
    ImageDraw.Draw(mask).text((1 - left, 1 - top), character, fill=255, font=font)
    return mask
