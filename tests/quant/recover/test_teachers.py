"""Stores of teachers: what they hold, what they refuse, and that they are continued."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_recovery import Small, make_small, quiet, store_answers

from vlpress.calib.activation_store import MemoryActivationStore
from vlpress.calib.samples.sample import Sample, content_digest
from vlpress.model.features import Features
from vlpress.model.processing.inputs import Visual
from vlpress.quant.recover.answers import Answers
from vlpress.quant.recover.teachers import Teacher


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return make_small(tmp_path_factory.mktemp("teachers") / "teacher")


def answers_of(small: Small) -> Answers:
    answers = Answers(small.model, small.prompts, MemoryActivationStore())
    answers.encode_images()
    return answers


def test_a_store_has_the_rows_of_the_model(small: Small) -> None:
    answers, teacher = answers_of(small), Teacher(small.store)
    assert teacher.kind == "full"
    for number in (0, 1, 11):
        rows = teacher.read(content_digest(small.samples[number]), torch.device("cpu"))
        with torch.no_grad():
            (logits,) = answers.logits([number])
        torch.testing.assert_close(rows.logprobs, logits.log_softmax(-1), atol=5e-3, rtol=5e-3)


def test_an_interrupted_store_is_continued(small: Small, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, total: int, detail: str) -> None:
        if done >= 5:
            raise StopError

    with pytest.raises(StopError):
        store_answers(tmp_path, small.model, small.samples, small.prompts, update=stop)
    seen: list[int] = []
    store_answers(
        tmp_path,
        small.model,
        small.samples,
        small.prompts,
        update=lambda done, total, detail: seen.append(done),
    )
    assert seen[0] == 5
    names = {path.name: path.read_bytes() for path in small.store.iterdir() if path.is_file()}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == names


def test_images_of_stored_samples_are_not_encoded_again(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = small.model.encode

    def count(visuals: Sequence[Visual]) -> list[Features]:
        encoded.append(len(visuals))
        return encode(visuals)

    monkeypatch.setattr(small.model, "encode", count)
    with_images = [bool(prompt.visuals) for prompt in small.prompts]
    for number, expected in ((5, sum(with_images[:5])), (12, sum(with_images[5:])), (12, 0)):
        encoded.clear()
        store_answers(tmp_path, small.model, small.samples[:number], small.prompts[:number])
        assert len(encoded) == expected
    assert sum(with_images[5:]) > 0


def test_other_samples_answers_and_teachers_are_refused(small: Small, tmp_path: Path) -> None:
    teacher, answers = Teacher(small.store), answers_of(small)
    digests = [content_digest(sample) for sample in small.samples]
    teacher.check(answers, digests)
    other = content_digest(Sample([], "", "unknown"))
    with pytest.raises(ValueError, match="holds nothing for 1 of 12 samples"):
        teacher.check(answers, [*digests[:-1], other])
    answers.prompts[3] = replace(answers.prompts[3], input_ids=answers.prompts[3].input_ids + 1)
    with pytest.raises(ValueError, match="other tokens for the answer of sample 4"):
        teacher.check(answers, digests)
    with pytest.raises(FileNotFoundError, match="is no store of a teacher"):
        Teacher(tmp_path)


def test_a_damaged_store_is_named(small: Small, tmp_path: Path) -> None:
    store_answers(tmp_path, small.model, small.samples[:2], small.prompts[:2], update=quiet)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(b"torn")
    teacher = Teacher(tmp_path)
    with pytest.raises(ValueError, match="is missing or damaged; delete the folder"):
        teacher.read(content_digest(small.samples[0]), torch.device("cpu"))
    header = json.loads((tmp_path / "teacher.json").read_text())
    header["vocabulary"] += 1
    (tmp_path / "teacher.json").write_text(json.dumps(header))
    with pytest.raises(ValueError, match="was made with another setup"):
        store_answers(tmp_path, small.model, small.samples[:2], small.prompts[:2])
