import random
from dataclasses import replace

import pytest
import tiny_data
import tiny_reasoning
import tiny_talk
import tiny_tokenizer
from tokenizers import Tokenizer

from vlpress.eval.tasks.generated.reasoning import split_text
from vlpress.model.loading import resolve_model
from vlpress.synthetic.scene import Question, Scene


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(resolve_model("tiny") / "tokenizer.json"))
    tiny_tokenizer.add_thinking(tokenizer)
    return tokenizer


def drawn(skill: str, seed: int) -> tuple[Scene, Question]:
    scene = tiny_data.draw(random.Random(seed), skill)
    return scene, next(q for q in scene.questions if q.skill == skill)


@pytest.mark.parametrize("skill", tiny_data.SHARES)
def test_derivations_are_short_and_end_in_the_answer(skill: str, tokenizer: Tokenizer) -> None:
    for seed in range(8):
        scene, question = drawn(skill, seed)
        text = tiny_reasoning.derivation(scene, question)
        last = f"{question.answer} the {question.slots['b']}" if skill == "direction" else ""
        assert text.endswith(last or question.answer)
        assert len(tokenizer.encode(text).ids) <= 40


def test_counts_follow_a_list_of_what_is_counted() -> None:
    for seed in range(12):
        for skill, of in (("count", ""), ("count_colour", "colour"), ("count_shape", "shape")):
            scene, question = drawn(skill, seed)
            things, _, count = tiny_reasoning.derivation(scene, question).rpartition(", so ")
            listed = things.split(", ")
            assert len(listed) == int(count) == int(question.answer)
            marks = [f"{m.colour} {m.shape}" for m in scene.images[0].marks if m.shape]
            wanted = [m for m in marks if not of or question.slots[of] in m.split()]
            assert sorted(listed) == sorted(wanted)


@pytest.mark.parametrize("skill", tiny_data.SHARES)
def test_strings_among_options_end_in_their_first_glyph(skill: str) -> None:
    scene, question = drawn(skill, 4)
    alone = tiny_reasoning.derivation(scene, question)
    among = tiny_reasoning.derivation(scene, question, among_options=True)
    is_string = skill in tiny_reasoning.STRINGS and len(question.answer) > 1
    assert among.removeprefix(alone) == (f", first {question.answer[0]}" if is_string else "")


def test_drills_seek_strings_by_their_first_glyph(tokenizer: Tokenizer) -> None:
    writer, seen = tiny_talk.Writer(tokenizer), 0
    for seed in range(10):
        drill = writer.drill(random.Random(seed), 5)
        text = tokenizer.decode(drill.ids, skip_special_tokens=False)
        letters = [tokenizer.decode([t]) for t in drill.target if t != tiny_talk.IGNORE]
        listed, *sought = text.split(" first ")
        if not sought:
            continue
        options = dict(line.split(". ") for line in listed.splitlines())
        for part, letter in zip(sought, letters, strict=True):
            assert part.startswith(f"{options[letter][0]}\n</think>\n\n{letter}")
            seen += 1
    assert seen >= 20


def test_bars_are_compared_by_their_values() -> None:
    for seed in range(6):
        scene, question = drawn("tallest", seed)
        bars, _, answer = tiny_reasoning.derivation(scene, question).rpartition(", so ")
        values = dict(bar.split() for bar in bars.split(", "))
        assert max(values, key=lambda colour: int(values[colour])) == answer == question.answer


def test_an_unknown_skill_is_refused() -> None:
    scene, question = drawn("count", 0)
    with pytest.raises(ValueError, match=r"'taste'.*count"):
        tiny_reasoning.derivation(scene, replace(question, skill="taste"))


def test_answers_follow_their_reasoning(tokenizer: Tokenizer) -> None:
    writer, rng = tiny_talk.Writer(tokenizer), random.Random(0)
    thoughts = set()
    for seed in range(20):
        scene, _ = drawn("count", seed)
        talk = writer.conversation(scene, rng, 3)
        for index in range(1, max(talk.segment) + 1):
            ids = [t for t, s in zip(talk.ids, talk.segment, strict=True) if s == index]
            text = tokenizer.decode(ids, skip_special_tokens=False)
            prompt, opened, written = text.partition("<|im_start|>assistant\n<think>\n")
            assert opened and "<think>" not in prompt
            parts = split_text(written.removesuffix("<|im_end|>"), "think-opened")
            assert parts.answer and not parts.is_unfinished
            thoughts.add(parts.reasoning)
    assert "\n</think>\n\n" in thoughts and len(thoughts) > 20


def test_reasoning_is_learned_and_the_tokens_of_an_empty_one_are_not(tokenizer: Tokenizer) -> None:
    writer, rng = tiny_talk.Writer(tokenizer), random.Random(0)
    scene, _ = drawn("count", 1)
    end = tokenizer.token_to_id("</think>")
    learned = given = 0
    for _ in range(20):
        talk = writer.conversation(scene, rng, 3)
        for at, token in enumerate(talk.ids[1:]):
            if token == end and talk.kind[at] == 4:
                assert talk.target[at] == end
                learned += 1
            elif token == end:
                assert talk.target[at] == tiny_talk.IGNORE
                given += 1
    assert learned > given > 0
