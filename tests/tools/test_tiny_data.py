"""Training must see exactly what the model is fed later."""

import random

import pytest
import tiny_data
import torch
from tokenizers import Tokenizer

from vlpress.calib import scenes, synthetic
from vlpress.calib.draw import Mark, Picture
from vlpress.calib.glyphs import GLYPHS
from vlpress.model.loading import resolve_model
from vlpress.model.processing import Processor


@pytest.fixture(scope="module")
def writer() -> tiny_data.Writer:
    return tiny_data.Writer(Tokenizer.from_file(str(resolve_model("tiny") / "tokenizer.json")))


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_folder(resolve_model("tiny"))


@pytest.mark.parametrize("kind", ["shapes", "album", "text"])
def test_patches_are_those_of_the_processor(kind: str, processor: Processor) -> None:
    scene = scenes.SCENES[kind](random.Random(1))
    for picture in scene.pictures:
        visual = processor.image(picture.image)
        assert torch.equal(torch.from_numpy(tiny_data.patches(picture)), visual.patches)


@pytest.mark.parametrize("kind", ["shapes", "album"])
def test_a_question_has_the_tokens_and_positions_of_a_single_turn(
    kind: str, writer: tiny_data.Writer, processor: Processor
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
        images = [p.image for p in scene.pictures]
        prompt = processor.encode(synthetic.user_turn(images, body))
        length = len(prompt)
        assert prompt.input_ids.tolist() == ids[:length]
        positions = torch.tensor([packed.position[i] for i in own[:length]]).T
        assert torch.equal(prompt.position_ids, positions)
        checked += 1


def test_a_mark_labels_its_patch_and_no_other() -> None:
    scene = scenes.SCENES["shapes"](random.Random(0))
    mark = Mark(x=20.0, y=5.0, colour="red", glyph="K")
    labels = tiny_data.patch_labels(Picture(scene.pictures[0].image, (mark,)))
    # patch (row 0, column 1) is the second of the four patches of the first token
    assert labels[0].reshape(4, -1)[1].nonzero()[0].tolist()[0] == GLYPHS.index("K")
    assert labels.sum() == 3  # the glyph, its colour and its line


def test_mask_lets_a_question_see_the_prefix_and_itself_only(writer: tiny_data.Writer) -> None:
    scene = scenes.SCENES["shapes"](random.Random(3))
    packed = writer.conversation(scene, random.Random(3), 3)
    batch = tiny_data.pack([packed])
    mask = batch.mask()[0, 0]
    for i, own in enumerate(packed.segment):
        for j, other in enumerate(packed.segment):
            assert bool(mask[i, j]) == (j <= i and other in (0, own))


def test_groups_keep_to_their_budget_and_lose_nothing(writer: tiny_data.Writer) -> None:
    rng = random.Random(4)
    packed = [writer.conversation(synthetic.draw_scene(rng), rng, 4) for _ in range(40)]
    groups = tiny_data.by_length(packed, 1500)
    assert sum(len(g) for g in groups) == 40
    assert all(max(len(c.ids) for c in g) * len(g) <= 1500 or len(g) == 1 for g in groups)


def test_the_same_seed_gives_the_same_batches(writer: tiny_data.Writer) -> None:
    first, second = (next(tiny_data.batches(writer, "joint", 9, 4, 4)) for _ in range(2))
    assert torch.equal(first.ids, second.ids) and torch.equal(first.patches, second.patches)


def test_looking_asks_for_facts_behind_the_picture(writer: tiny_data.Writer) -> None:
    rng = random.Random(6)
    scene = scenes.SCENES["signs"](rng)
    packed = writer.look(scene, rng)
    text = writer.tokenizer.decode(packed.ids, skip_special_tokens=False)
    for question in scene.questions:
        if question.skill in tiny_data.READING:
            assert f" {question.slots['colour']}{question.answer}<|im_end|>" in text


def test_every_skill_that_a_single_picture_asks_has_a_cue() -> None:
    rng = random.Random(0)
    asked = {q.skill for s in scenes.SCENES.values() for _ in range(60) for q in s(rng).questions}
    assert asked - set(tiny_data.CUES) == {"kind", "background", "quality", "list"}


def test_a_drill_asks_for_the_letter_of_every_word(writer: tiny_data.Writer) -> None:
    drill = writer.drill(random.Random(0), 5)
    letters = [writer.tokenizer.decode([t]) for t in drill.target if t != tiny_data.IGNORE]
    assert len(letters) == 5 and set(letters) <= set("ABCD")
