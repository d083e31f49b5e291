import random
from string import Formatter

import pytest

from vlpress.synthetic import phrases, scenes, words
from vlpress.synthetic.scene import Scene
from vlpress.synthetic.scenes import SCENES


def many(kind: str, count: int = 60) -> list[Scene]:
    rng = random.Random(f"test {kind}")
    return [SCENES[kind](rng) for _ in range(count)]


@pytest.mark.parametrize("kind", SCENES)
def test_every_question_can_be_worded_and_has_its_answer_once(kind: str) -> None:
    for scene in many(kind):
        assert scene.questions
        for question in scene.questions:
            assert question.answer not in question.wrong
            assert len(set(question.wrong)) == len(question.wrong)
            for wording in phrases.ENGLISH_PHRASES[question.skill]:
                slots = {name for _, name, _, _ in Formatter().parse(wording) if name}
                assert slots <= set(question.slots), (question.skill, wording)


@pytest.mark.parametrize("kind", SCENES)
def test_every_mark_is_inside_its_image(kind: str) -> None:
    for scene in many(kind):
        for image in scene.images:
            for mark in image.marks:
                assert 0 <= mark.x < image.image.width, (kind, mark)
                assert 0 <= mark.y < image.image.height, (kind, mark)


@pytest.mark.parametrize("kind", ["shapes", "pair", "odd", "frame"])
def test_counts_and_attributes_agree_with_the_marks(kind: str) -> None:
    for scene in many(kind):
        marks = [m for m in scene.images[0].marks if m.shape]
        for question in scene.questions:
            shape, colour = question.slots.get("shape"), question.slots.get("colour")
            if question.skill == "count":
                assert question.answer == str(len(marks))
            elif question.skill == "count_shape":
                assert question.answer == str(sum(m.shape == shape for m in marks))
            elif question.skill == "count_colour":
                assert question.answer == str(sum(m.colour == colour for m in marks))
            elif question.skill == "colour_of":
                assert [m.colour for m in marks if m.shape == shape] == [question.answer]
            elif question.skill == "shape_of":
                assert [m.shape for m in marks if m.colour == colour] == [question.answer]


@pytest.mark.parametrize("kind", ["pair", "shapes"])
def test_directions_agree_with_the_marks(kind: str) -> None:
    checked = 0
    for scene in many(kind, 200):
        at = {m.shape: m for m in scene.images[0].marks}
        for question in scene.questions:
            if question.skill != "direction":
                continue
            a, b = at[question.slots["a"]], at[question.slots["b"]]
            dx, dy = a.x - b.x, a.y - b.y
            across = abs(dx) > abs(dy)
            expected = ("left" if dx < 0 else "right") if across else "above" if dy < 0 else "below"
            assert question.answer == expected
            checked += 1
    assert checked > 50


def test_chart_answers_agree_with_the_heights_of_the_bars() -> None:
    for scene in many("chart"):
        bars = [m for m in scene.images[0].marks if m.shape == "bar"]
        answers = {q.skill: q.answer for q in scene.questions}
        assert answers["tallest"] == min(bars, key=lambda m: m.y).colour
        assert answers["shortest"] == max(bars, key=lambda m: m.y).colour
        assert answers["bar_count"] == str(len(bars))


def test_strings_that_are_asked_for_are_drawn_in_reading_order() -> None:
    for scene in many("text"):
        glyphs = [m for m in scene.images[0].marks if m.glyph]
        drawn = "".join(m.glyph for m in sorted(glyphs, key=lambda m: m.x))
        assert scene.questions[0].answer == drawn


def test_no_glyph_hides_another_in_its_patch() -> None:
    for kind in ("text", "lines", "form", "formula", "signs"):
        for scene in many(kind):
            marks = [m for m in scene.images[0].marks if m.glyph]
            for i, a in enumerate(marks):
                assert all(max(abs(a.x - b.x), abs(a.y - b.y)) > 9 for b in marks[:i]), kind


def test_same_seed_draws_the_same_pixels() -> None:
    for draw in SCENES.values():
        first, second = draw(random.Random(5)), draw(random.Random(5))
        assert first.questions == second.questions
        assert [p.image.tobytes() for p in first.images] == [
            p.image.tobytes() for p in second.images
        ]


def test_an_album_has_several_images_and_questions_about_all() -> None:
    albums = many("album")
    assert {len(s.images) for s in albums} == {2, 3}
    assert {"which_image", "nth_colour"} <= {q.skill for s in albums for q in s.questions}


def test_blank_keeps_the_size_and_nothing_else() -> None:
    image = many("chart", 1)[0].images[0].image
    gray = scenes.blank(image)
    assert gray.size == image.size
    assert gray.getcolors() == [(112 * 112, (128, 128, 128))]


def test_latex_of_a_formula() -> None:
    assert words.latex([("x", False), ("2", True), ("+", False), ("3", False)]) == "x^{2}+3"


def test_codes_avoid_similar_glyphs() -> None:
    rng = random.Random(0)
    text = "".join(words.code(rng, 5) for _ in range(500))
    assert not set("IOQ01") & set(text)


@pytest.mark.parametrize("stream", [scenes.Stream.TRAINING, scenes.Stream.BENCHMARK])
def test_streams_share_no_image(stream: scenes.Stream) -> None:
    def images(of: scenes.Stream) -> set[bytes]:
        rng = scenes.stream_random(of, 0)
        return {scenes.draw_scene(rng).images[0].image.tobytes() for _ in range(200)}

    assert len(images(stream)) > 190
    assert not images(stream) & images(scenes.Stream.CALIBRATION)
