"""A training conversation equals single-turn prompts."""

import random

import pytest
import tiny_reasoning
import tiny_talk
import torch
from tokenizers import Tokenizer

from vlpress.model.loading import resolve_model
from vlpress.model.processing.processor import Processor
from vlpress.synthetic import scenes, wording


@pytest.fixture(scope="module")
def writer() -> tiny_talk.Writer:
    return tiny_talk.Writer(Tokenizer.from_file(str(resolve_model("tiny") / "tokenizer.json")))


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_folder(resolve_model("tiny"))


@pytest.mark.parametrize("kind", ["shapes", "album"])
def test_a_question_has_the_tokens_and_positions_of_a_single_turn(
    kind: str, writer: tiny_talk.Writer, processor: Processor
) -> None:
    rng = random.Random(2)
    checked = 0
    while checked < 4:
        scene = scenes.SCENES[kind](rng)
        packed = writer.conversation(scene, rng, 3)
        text = writer.tokenizer.decode(packed.ids, skip_special_tokens=False)
        if "Question: <|vision_start|>" in text:
            continue
        last = max(packed.segment)
        own = [i for i, s in enumerate(packed.segment) if s in (0, last)]
        ids = [packed.ids[i] for i in own]
        start = writer.tokenizer.encode("<|im_start|>assistant\n").ids
        turn = max(i for i in range(len(ids)) if ids[i : i + len(start)] == start)
        asked = [packed.ids[i] for i in own if packed.segment[i] == last][: turn + len(start)]
        body = writer.tokenizer.decode(asked, skip_special_tokens=False).split("<|im_end|>")[0]
        images = [p.image for p in scene.images]
        prompt = processor.encode(wording.user_turn(images, body))
        length = len(prompt)
        assert prompt.input_ids.tolist() == ids[:length]
        positions = torch.tensor([packed.position[i] for i in own[:length]]).T
        assert torch.equal(prompt.position_ids, positions)
        checked += 1


def test_looking_drill_has_cues_after_the_image(writer: tiny_talk.Writer) -> None:
    rng = random.Random(6)
    scene = scenes.SCENES["signs"](rng)
    packed = writer.look(scene, rng)
    text = writer.tokenizer.decode(packed.ids, skip_special_tokens=False)
    for question in scene.questions:
        if question.skill in tiny_reasoning.STRINGS:
            assert f" {question.slots['colour']}{question.answer}<|im_end|>" in text


def test_every_skill_of_a_single_image_has_a_cue() -> None:
    rng = random.Random(0)
    asked = {q.skill for s in scenes.SCENES.values() for _ in range(60) for q in s(rng).questions}
    assert asked - set(tiny_talk.CUES) == {"kind", "background", "list"}


def test_a_drill_asks_for_the_letter_of_every_word(writer: tiny_talk.Writer) -> None:
    drill = writer.drill(random.Random(0), 5)
    letters = [writer.tokenizer.decode([t]) for t in drill.target if t != tiny_talk.IGNORE]
    assert len(letters) == 5 and set(letters) <= set("ABCD")
