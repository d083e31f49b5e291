import random

import numpy as np
import pytest

from vlpress.synthetic import canvas, glyphs


def new_canvas(background: canvas.Colour = (255, 255, 255)) -> canvas.Canvas:
    return canvas.Canvas(112, 112, background, random.Random(0))


def ink_box(image: canvas.AnnotatedImage) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what differs from a white background."""
    marked = np.asarray(image.image).min(axis=2) < 200
    rows, columns = np.nonzero(marked.any(1))[0], np.nonzero(marked.any(0))[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


@pytest.mark.parametrize("face", canvas.FACES)
def test_glyph_is_drawn_where_its_mark_says(face: str) -> None:
    page = new_canvas()
    page.glyph("H", 40, 70, "black", canvas.TextStyle(face, height=18))
    image = page.finish()
    left, top, right, bottom = ink_box(image)
    assert (left + right) / 2 == pytest.approx(40, abs=3)
    assert (top + bottom) / 2 == pytest.approx(70, abs=3)
    assert bottom - top == pytest.approx(18, abs=6)
    assert image.marks == (canvas.Mark(40, 70, "black", glyph="H", rank=1, line=1),)


@pytest.mark.parametrize("kind", canvas.SHAPES)
def test_shape_has_its_colour_at_its_place(kind: str) -> None:
    page = new_canvas()
    page.shape(kind, 60, 50, 16, "red", "large")
    image = page.finish()
    left, top, right, bottom = ink_box(image)
    assert left >= 60 - 19 and right <= 60 + 19 and top >= 50 - 19 and bottom <= 50 + 19
    assert right - left >= 20 and bottom - top >= 20
    pixels = np.asarray(image.image).reshape(-1, 3).astype(int)
    red = (pixels[:, 0] > 190) & (pixels[:, 1] < 60) & (pixels[:, 2] < 60)
    assert red.sum() > 150


def test_text_advances_along_its_angle() -> None:
    page = new_canvas()
    page.text("ABC", 56, 56, "black", canvas.TextStyle("round", advance=16, angle=90))
    assert [round(m.x) for m in page.marks] == [56, 56, 56]
    assert [round(m.y) for m in page.marks] == [40, 56, 72]


def test_text_on_a_sign_is_labelled_with_the_colour_of_the_sign() -> None:
    page = new_canvas()
    page.text("A", 56, 56, "white", canvas.TextStyle("sans"), on="blue")
    assert page.marks[0].colour == "blue"


def test_all_glyphs_look_different_in_every_plain_face() -> None:
    for face in ("sans", "round", "angular", "slanted", "wide"):
        seen = set()
        for character in glyphs.GLYPHS:
            page = new_canvas()
            page.rng.seed(1)  # the same jitter of the ink
            page.glyph(character, 56, 56, "black", canvas.TextStyle(face, height=20))
            seen.add(page.finish().image.tobytes())
        assert len(seen) == len(glyphs.GLYPHS), face


def test_dark_background_is_told_from_light() -> None:
    assert all(new_canvas(c).is_dark for c in canvas.DARK)
    assert not any(new_canvas(c).is_dark for c in canvas.LIGHT)
