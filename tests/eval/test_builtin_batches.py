"""Answers of the built-in model do not depend on the batch size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vlpress.eval.answering.runner import ModelResponder, answer_task
from vlpress.eval.answering.vision_features import FeatureCache
from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.prompts import default_prompt_style
from vlpress.eval.tasks.task import Task
from vlpress.model.loading import load_model, resolve_model
from vlpress.model.processing.processor import Processor

BATCHES = (1, 4, 16)
SAMPLE = {"builtin-mmbench": 2, "builtin-ocrbench": 8, "builtin-mmmu": 4}  # questions of each
ALL = dict.fromkeys((*SAMPLE, "builtin-mmbench-cn"), None)


@pytest.fixture(scope="module")
def responder() -> ModelResponder:
    folder = resolve_model("tiny")
    model = load_model(folder, device="cpu", dtype="fp32")
    return ModelResponder(FeatureCache(model, Processor.from_folder(folder)))


def mixed(sample: dict[str, int | None] | dict[str, int]) -> Task:
    """Questions of several benchmarks as one task, so that unlike prompts share a batch."""
    style = default_prompt_style("qwen2_5_vl")
    opened = [open_task(name, limit=limit, prompt_style=style) for name, limit in sample.items()]
    items = [replace(item, id=f"{task.name} {item.id}") for task in opened for item in task.items]
    return replace(opened[0], items=tuple(items))


def texts(task: Task, responder: ModelResponder, path: Path, batch_size: int) -> dict[str, str]:
    found = answer_task(task, responder, path, {}, batch_size=batch_size)
    return {key: prediction.prediction for key, prediction in found.items()}


def check(task: Task, responder: ModelResponder, folder: Path) -> dict[str, str]:
    alone, *others = (texts(task, responder, folder / f"{size}.jsonl", size) for size in BATCHES)
    for size, together in zip(BATCHES[1:], others, strict=True):
        unlike = {key: (alone[key], text) for key, text in together.items() if text != alone[key]}
        assert not unlike, f"batches of {size}"
    return alone


def test_sampled_questions_get_one_answer_at_batch_1_4_and_16(
    responder: ModelResponder, tmp_path: Path
) -> None:
    task = mixed(SAMPLE)
    assert len(task.items) > max(BATCHES)
    found = check(task, responder, tmp_path)
    assert len(found) == len(task.items) and len(set(found.values())) > 8


@pytest.mark.slow
def test_all_questions_get_one_answer_at_batch_1_4_and_16(
    responder: ModelResponder, tmp_path: Path
) -> None:
    task = mixed(ALL)
    assert len(task.items) > 2000
    check(task, responder, tmp_path)
