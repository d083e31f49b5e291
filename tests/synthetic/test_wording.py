import random

from vlpress.synthetic import canvas, phrases, scene, wording


def test_every_skill_has_ten_english_phrasings_and_a_chinese_one() -> None:
    assert phrases.ENGLISH_PHRASES.keys() == phrases.CHINESE_PHRASES.keys()
    for skill, phrasings in phrases.ENGLISH_PHRASES.items():
        assert len(set(phrasings)) >= 10, skill
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
        options = wording.choose_options(question, rng, count)
        assert len(options) == expected and options.count("red") == 1


def test_the_position_of_the_answer_is_uniform() -> None:
    rng = random.Random(0)
    question = scene.Question("colour_of", "red", canvas.INKS[1:], {"shape": "star"})
    positions = [wording.choose_options(question, rng, 4).index("red") for _ in range(4000)]
    assert all(900 < positions.count(i) < 1100 for i in range(4))


def test_the_multiple_choice_body_is_the_benchmark_prompt() -> None:
    question = scene.Question("colour_of", "red", ("green",), {"shape": "star"})
    english = wording.word_question(question, ("green", "red"), random.Random(0))
    assert english.answer == "B"
    assert english.body() == (
        f"Question: {english.question}\nOptions:\nA. green\nB. red\n"
        "Please select the correct answer from the options above. \n"
    )
    assert english.body(bare=True) == english.body().removeprefix("Question: ")
    chinese = wording.word_question(question, ("green", "red"), random.Random(0), language="zh")
    assert chinese.options == ("绿色", "红色")
    assert chinese.body(language="zh").endswith("B. 红色\n请直接回答选项字母。")
