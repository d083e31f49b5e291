import random

import pytest

from vlpress.synthetic import glyphs


def test_every_glyph_stays_inside_its_grid() -> None:
    for character in glyphs.GLYPHS:
        for stroke in glyphs.strokes(character):
            assert len(stroke) >= 2, character
            assert all(abs(x) <= 2 and abs(y) <= 3 for x, y in stroke), character


def test_no_two_glyphs_share_their_strokes() -> None:
    assert len(set(glyphs.STROKES.values())) == len(glyphs.GLYPHS)


def test_unknown_character_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no glyph for 'é'"):
        glyphs.strokes("é")


def test_smooth_keeps_the_ends_of_an_open_stroke_and_closes_a_closed_one() -> None:
    open_stroke = glyphs.smooth([(0, 0), (2, 0), (2, 2)])
    assert (open_stroke[0], open_stroke[-1]) == ((0, 0), (2, 2))
    closed = glyphs.smooth([(0, 0), (2, 0), (2, 2), (0, 0)])
    assert closed[0] == closed[-1]
    assert glyphs.smooth([(0, 0), (1, 1)]) == [(0, 0), (1, 1)]


def test_jitter_moves_points_by_no_more_than_the_amount() -> None:
    moved = glyphs.jitter([(0, 0), (1, 1)], 0.25, random.Random(0))
    assert moved != [(0, 0), (1, 1)]
    assert all(
        abs(a - b) <= 0.25
        for point, was in zip(moved, [(0, 0), (1, 1)], strict=True)
        for a, b in zip(point, was, strict=True)
    )


def test_transform_scales_shears_turns_and_moves() -> None:
    moved = glyphs.transform([(1, 2)], scale=(3, 4), slant=0.5, angle=90, origin=(10, 20))
    # scaled (3, 8), sheared to (-1, 8), turned by 90 degrees to (-8, -1), moved by (10, 20)
    assert moved[0] == pytest.approx((2, 19))
