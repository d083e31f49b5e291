"""All scenes, and the random streams of their three uses.

A scene function takes a `random.Random` and returns a `Scene`: one or several images with
questions. A question names a skill (the key of the phrasings), the slots of the phrasing, the
answer, and a pool of wrong answers of the same kind, so that only the image distinguishes the right
one.

The generator has three disjoint uses: training of the built-in model, calibration, and the built-in
benchmarks. Each has a random stream of its own, so that no image is in two of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from enum import IntEnum

from PIL import Image

from .canvas import INKS, SHAPES
from .scene import (
    ORDINALS,
    SMALL_SIDE,
    Question,
    Scene,
    fitting_style,
    new_canvas,
    number_or_word,
    others,
    text_colour,
    wrong_strings,
)
from .shape_scenes import chart, frame, odd, pair, row, shapes
from .text_scenes import form, formula, lines, signs, text


def album(rng: random.Random) -> Scene:
    """Draw two or three images, each with one shape or one short word."""
    count = rng.randint(2, 3)
    kinds, colours = rng.sample(SHAPES, count), rng.sample(INKS, count)
    images, questions = [], []
    ordinals = ORDINALS[:count]
    for i in range(count):
        canvas = new_canvas(rng, SMALL_SIDE)
        slots = {"ordinal": ordinals[i]}
        if rng.random() < 0.3:
            make = number_or_word(rng, 0.0)
            string = make()
            style = fitting_style(rng, rng.choice(("sans", "round")), len(string), SMALL_SIDE)
            canvas.text(
                string, SMALL_SIDE / 2, rng.uniform(22, 62), text_colour(canvas, rng), style
            )
            questions.append(Question("nth_read", string, wrong_strings(string, make), slots))
        else:
            x, y = (rng.uniform(26, SMALL_SIDE - 26) for _ in range(2))
            large = rng.random() < 0.5
            radius = 15.0 if large else 9.5
            canvas.shape(kinds[i], x, y, radius, colours[i], "large" if large else "small")
            wrong = others(INKS, colours[i])
            questions.append(Question("nth_colour", colours[i], wrong, slots))
            questions.append(Question("nth_shape", kinds[i], others(SHAPES, kinds[i]), slots))
            for skill, name, value in (
                ("which_image", "shape", kinds[i]),
                ("which_colour_image", "colour", colours[i]),
            ):
                wrong = others(ordinals, ordinals[i])
                questions.append(Question(skill, ordinals[i], wrong, {name: value}))
        images.append(canvas.finish())
    return Scene("album", tuple(images), tuple(questions))


SCENES: dict[str, Callable[[random.Random], Scene]] = {
    "text": text, "signs": signs, "lines": lines, "form": form, "formula": formula,
    "shapes": shapes, "pair": pair, "odd": odd, "row": row, "frame": frame, "chart": chart,
    "album": album,
}  # fmt: skip


class Stream(IntEnum):
    """Use of the generator; different streams never have the same seed."""

    TRAINING = 1
    CALIBRATION = 2
    BENCHMARK = 3


def stream_random(stream: Stream, seed: int) -> random.Random:
    """Return the random generator of a stream and seed."""
    return random.Random(f"vlpress/{int(stream)}/{seed}")


def draw_scene(rng: random.Random, kinds: Sequence[str] | None = None) -> Scene:
    """Draw a random scene of one of `kinds` (default: all)."""
    return SCENES[rng.choice(tuple(kinds or SCENES))](rng)


def blank(image: Image.Image) -> Image.Image:
    """Return a uniform gray image of the same size."""
    return Image.new("RGB", image.size, (128, 128, 128))
