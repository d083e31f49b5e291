"""Batches are complete and deterministic."""

import random

import pytest
import tiny_data
import tiny_talk
import torch
from tokenizers import Tokenizer

from vlpress.model.loading import resolve_model
from vlpress.synthetic import scenes

FAMILY = "qwen2_5_vl"


@pytest.fixture(scope="module")
def writer() -> tiny_talk.Writer:
    return tiny_talk.Writer(Tokenizer.from_file(str(resolve_model("tiny") / "tokenizer.json")))


def test_mask_of_a_question_is_the_prefix_and_itself(writer: tiny_talk.Writer) -> None:
    scene = scenes.SCENES["shapes"](random.Random(3))
    packed = writer.conversation(scene, random.Random(3), 3)
    batch = tiny_data.pack([packed], FAMILY)
    mask = batch.mask()[0, 0]
    for i, own in enumerate(packed.segment):
        for j, other in enumerate(packed.segment):
            assert bool(mask[i, j]) == (j <= i and other in (0, own))


def test_groups_are_complete_and_within_the_budget(writer: tiny_talk.Writer) -> None:
    rng = random.Random(4)
    packed = [writer.conversation(scenes.draw_scene(rng), rng, 4) for _ in range(40)]
    groups = tiny_data.by_length(packed, 1500)
    assert sum(len(g) for g in groups) == 40
    assert all(max(len(c.ids) for c in g) * len(g) <= 1500 or len(g) == 1 for g in groups)


def test_batches_are_deterministic(writer: tiny_talk.Writer) -> None:
    first, second = (
        next(tiny_data.batches(writer, "joint", 9, 4, 4, family=FAMILY)) for _ in range(2)
    )
    assert torch.equal(first.ids, second.ids) and torch.equal(first.patches, second.patches)


@pytest.mark.parametrize("skill", ["largest", "quality", "number"])
def test_scene_has_a_question_of_the_skill(skill: str) -> None:
    scene = tiny_data.draw(random.Random(0), skill)
    assert skill in {q.skill for q in scene.questions}


def test_every_skill_can_be_drawn() -> None:
    rng = random.Random(0)
    skills = {q.skill for s in scenes.SCENES.values() for _ in range(60) for q in s(rng).questions}
    assert set(tiny_data.SHARES) == skills - {"list", "repeat"}
    for skill, (share, kinds) in tiny_data.SHARES.items():
        assert share > 0 and set(kinds) <= set(scenes.SCENES), skill
