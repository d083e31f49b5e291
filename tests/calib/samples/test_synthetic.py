import random

import pytest

from vlpress.calib.samples import synthetic
from vlpress.calib.samples.sample import image_digests
from vlpress.calib.samples.synthetic import Stream
from vlpress.synthetic import canvas, phrases, scene


def test_every_skill_has_ten_english_phrasings_and_a_chinese_one() -> None:
    assert phrases.ENGLISH_PHRASES.keys() == phrases.CHINESE_PHRASES.keys()
    for skill, wordings in phrases.ENGLISH_PHRASES.items():
        assert len(set(wordings)) >= 10, skill
        assert len(set(phrases.CHINESE_PHRASES[skill])) >= 1, skill


def test_every_fixed_answer_has_a_chinese_word() -> None:
    fixed = (*canvas.INKS, *canvas.SHAPES, *scene.PLACES, *scene.DIRECTIONS, *scene.KINDS)
    for word in (*fixed, *scene.ORDINALS, "yes", "no", "light", "dark", "sharp", "blurred"):
        assert phrases.translate(word, "zh") != word
        assert phrases.translate(word, "en") == word
    assert phrases.translate("QTY", "zh") == "QTY"


def test_options_hold_the_answer_once_and_follow_the_pool() -> None:
    rng = random.Random(0)
    question = scene.Question("colour_of", "red", ("green", "blue"), {"shape": "star"})
    for count, expected in ((2, 2), (3, 3), (4, 3)):
        options = synthetic.choose_options(question, rng, count)
        assert len(options) == expected and options.count("red") == 1


def test_the_place_of_the_answer_is_uniform() -> None:
    rng = random.Random(0)
    question = scene.Question("colour_of", "red", canvas.INKS[1:], {"shape": "star"})
    places = [synthetic.choose_options(question, rng, 4).index("red") for _ in range(4000)]
    assert all(900 < places.count(i) < 1100 for i in range(4))


def test_multiple_choice_body_is_the_benchmark_prompt() -> None:
    question = scene.Question("colour_of", "red", ("green",), {"shape": "star"})
    asked = synthetic.word_question(question, ("green", "red"), random.Random(0))
    assert asked.answer == "B"
    assert asked.body() == (
        f"Question: {asked.question}\nOptions:\nA. green\nB. red\n"
        "Please select the correct answer from the options above. \n"
    )
    assert asked.body(bare=True) == asked.body().removeprefix("Question: ")
    chinese = synthetic.word_question(question, ("green", "red"), random.Random(0), language="zh")
    assert chinese.options == ("绿色", "红色")
    assert chinese.body(language="zh").endswith("B. 红色\n请直接回答选项字母。")


def test_calibration_samples_are_reproducible_and_cover_all_scenes() -> None:
    first = synthetic.calibration_samples(48, seed=3)
    again = synthetic.calibration_samples(48, seed=3)
    assert [s.answer for s in first] == [s.answer for s in again]
    assert image_digests(first) == image_digests(again)
    assert len({s.id for s in first}) == 48
    letters = sum(s.answer in tuple("ABCD") for s in first)
    assert 10 <= letters <= 38
    assert any(len(s.messages[0]["content"]) > 2 for s in first), "several pictures"


def test_calibration_answers_are_never_empty() -> None:
    assert all(s.answer for s in synthetic.calibration_samples(200, seed=0))


@pytest.mark.parametrize("stream", [Stream.TRAINING, Stream.BENCHMARK])
def test_streams_do_not_share_pictures(stream: Stream) -> None:
    rng = synthetic.generator(stream, 0)
    other = {synthetic.draw_scene(rng).pictures[0].image.tobytes() for _ in range(200)}
    mine = synthetic.generator(Stream.CALIBRATION, 0)
    ours = {synthetic.draw_scene(mine).pictures[0].image.tobytes() for _ in range(200)}
    assert len(other) > 190 and not other & ours
