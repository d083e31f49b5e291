from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eval_files import base64_png, mmbench_rows, write_tsv
from eval_models import TableResponder, evaluate_answers, right, small_model
from tiny_models import make_random_model, write_checkpoint_folder

from vlpress.eval import evaluate_model
from vlpress.eval.answering.vision_features import FeatureCache
from vlpress.eval.config import QuestionOptions
from vlpress.eval.resolve import open_tasks
from vlpress.eval.results import read_run
from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.askable import (
    mark_as_reference,
    mark_unaskable,
    require_input_sizes,
    with_input_sizes,
)
from vlpress.eval.tasks.resolution import PixelBounds
from vlpress.eval.tasks.task import INPUT_SIZE, Task
from vlpress.model.processing.processor import Processor
from vlpress.quant.config import ModelSettings
from vlpress.quant.resolve import Source

CONTEXT = 4096  # of the small model, whose tokens of text are bytes


def own_file(folder: Path, changes: dict[int, Any], count: int = 40) -> Path:
    rows: list[dict[str, Any]] = [{"question": f"q {n}?", "answer": "x"} for n in range(count)]
    for number, change in changes.items():
        rows[number] |= change
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def prompt_tokens(task: Task, processor: Processor) -> list[int]:
    features = FeatureCache(small_model(), processor)
    return [len(features.prompts([item])[0][0]) for item in task.items]


def with_context(processor: Processor, context: int) -> Processor:
    text = replace(processor.config.text, max_position_embeddings=context)
    config = replace(processor.config, text=text)
    return Processor(config, processor.tokenizer, processor.settings)


@pytest.mark.parametrize("bounds", [None, PixelBounds(112 * 112, 224 * 224)])
def test_the_limit_is_exact_and_leaves_room_for_one_token(
    tmp_path: Path, processor: Processor, bounds: PixelBounds | None
) -> None:
    change = {"image": [base64_png(1, (300, 90)), base64_png(2)], "question": "Which is larger?"}
    opened = open_task(f"x={own_file(tmp_path, {4: change})}")
    task = replace(opened, items=tuple(replace(item, pixels=bounds) for item in opened.items))
    longest = max(prompt_tokens(task, processor))
    assert prompt_tokens(task, processor)[4] == longest
    assert mark_unaskable(task, with_context(processor, longest + 1)) == task
    marked = mark_unaskable(task, with_context(processor, longest))
    assert marked.fingerprint["broken"] == ["5"] and len(marked.items) == 39
    fault = marked.fields[4]["fault"]
    assert fault.startswith("line 5: ") and str(longest) in fault


def test_a_prompt_longer_than_the_context_is_a_broken_row(
    tmp_path: Path, processor: Processor
) -> None:
    task = open_task(f"x={own_file(tmp_path, {30: {'question': 'a ' * CONTEXT}})}")
    assert task.fingerprint["broken"] == []
    marked = mark_unaskable(task, processor)
    assert marked.fingerprint["broken"] == ["31"] and marked.fingerprint["rows"] == 40
    assert f"context of {CONTEXT}" in marked.notes[-1]
    score = marked.score({item.id: "x" for item in marked.items})
    assert (score.n_rows, score.broken, score.percent) == (40, 1, 97.5)


def test_placeholders_of_another_vocabulary_break_their_rows(
    tmp_path: Path, processor: Processor
) -> None:
    task = open_task(f"x={own_file(tmp_path, {7: {'question': 'What is Z?'}})}")
    odd = replace(processor.config, video_token_id=processor.tokenizer.encode("Z")[0])
    marked = mark_unaskable(task, Processor(odd, processor.tokenizer, processor.settings))
    assert marked.fingerprint["broken"] == ["8"]
    assert mark_unaskable(task, processor) == task


def test_a_question_with_a_broken_rotation_counts_as_wrong(
    tmp_path: Path, processor: Processor
) -> None:
    rows = mmbench_rows(8)
    rows[5]["hint"] = "h" * CONTEXT  # one rotation of the second question
    opened = open_task(f"MMBench_DEV_EN={write_tsv(tmp_path / 'a.tsv', rows)}")
    task = mark_unaskable(opened, processor)
    assert task.fingerprint["broken"] == ["1000242"] and len(task.items) == 31
    score = task.score({item.id: right(item) for item in task.items})
    assert (score.n_rows, score.broken, score.percent) == (32, 1, 87.5)


def test_many_long_prompts_are_refused_before_a_model_is_loaded(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = {"question": "a " * CONTEXT}
    path = own_file(tmp_path, {4: long, 9: long, 14: long})
    source = Source.find(str(checkpoint), ModelSettings(device="cpu"))
    monkeypatch.setattr(Source, "load", lambda self: pytest.fail("weights were loaded"))
    with pytest.raises(ValueError, match=r"a\.jsonl: 3 of 40 rows .*5: line 5: .*10: line 10: "):
        open_tasks(QuestionOptions(bench=str(path)), source, source.processor())
    path = own_file(tmp_path, {4: long})
    [task] = open_tasks(QuestionOptions(bench=str(path)), source, source.processor())
    assert task.fingerprint["broken"] == ["5"]


def test_base_and_candidate_have_the_same_broken_rows(
    checkpoint: Path, tmp_path: Path, processor: Processor
) -> None:
    wide = base64_png(1, (1093, 5))
    changes = {4: {"question": "a " * CONTEXT}, 9: {"image": wide}}
    path = own_file(tmp_path, changes)
    other = Processor.from_folder(write_checkpoint_folder(tmp_path / "other", make_random_model()))
    first, second = (mark_unaskable(open_task(f"x={path}"), p) for p in (processor, other))
    assert first.fingerprint == second.fingerprint
    assert first.fields == second.fields and first.fingerprint["broken"] == ["5", "10"]


def test_a_served_model_gets_the_rows_of_the_reference(
    tmp_path: Path, processor: Processor
) -> None:
    changes = {4: {"question": "a " * CONTEXT}, 9: {"image": base64_png(1, (1093, 5))}}
    opened = open_task(f"x={own_file(tmp_path, changes)}")
    local = mark_unaskable(opened, processor)
    evaluate_answers(TableResponder(), small_model(), processor, [local], tmp_path / "base")
    [served] = mark_as_reference([opened], read_run(tmp_path / "base"))
    assert served.fingerprint == local.fingerprint
    assert served.fields == local.fields
    assert served.fingerprint["broken"] == ["5", "10"]
    renamed = replace(opened, name="other")
    assert mark_as_reference([renamed], read_run(tmp_path / "base")) == [renamed]


def places_task(folder: Path, coordinates: str) -> Task:
    row = {"image": base64_png(1, (200, 100)), "question": "open", "bbox": "[10, 10, 20, 20]"}
    path = write_tsv(folder / "s.tsv", [{"index": index, **row} for index in range(2)])
    return open_task(f"ScreenSpot_Web={path}", coordinates=coordinates)


def test_pixels_of_the_model_are_read_by_the_size_of_its_image(
    tmp_path: Path, processor: Processor
) -> None:
    opened = places_task(tmp_path, "qwen2.5-vl")
    task = with_input_sizes(opened, processor)
    visual = processor.image(opened.items[0].images[0].open())
    width, height = (side * processor.config.vision.patch_size for side in visual.grid[:0:-1])
    assert [item.fields[INPUT_SIZE] for item in task.items] == [[width, height]] * 2
    assert task.fingerprint == opened.fingerprint
    # The element's centre is (19.5, 19.5) of 200 x 100.
    answers = {"0": f"[{19.5 * width / 200}, {19.5 * height / 100}]", "1": "[19.5, 90]"}
    assert task.score(answers).percent == 50.0
    same = places_task(tmp_path, "qwen3-vl")
    assert with_input_sizes(same, processor) == same


def test_a_served_model_needs_the_sizes_of_the_reference(
    tmp_path: Path, processor: Processor
) -> None:
    opened = places_task(tmp_path, "qwen2.5-vl")
    with pytest.raises(ValueError, match=r"qwen2\.5-vl .*2 of 2 rows.*--reference"):
        require_input_sizes([opened])
    local = with_input_sizes(opened, processor)
    evaluate_answers(TableResponder(), small_model(), processor, [local], tmp_path / "base")
    served = mark_as_reference([opened], read_run(tmp_path / "base"))
    require_input_sizes(served)
    assert served[0].fields == local.fields
    require_input_sizes([places_task(tmp_path, "qwen3-vl")])


def test_a_model_in_memory_is_not_given_rows_beyond_its_context(
    tmp_path: Path, processor: Processor
) -> None:
    path = own_file(tmp_path, {4: {"question": "a " * CONTEXT}})
    opened = open_task(f"x={path}", max_new_tokens=1)
    evaluate_model(small_model(), processor, [opened], tmp_path / "out")
    stored = read_run(tmp_path / "out").tasks["x"]
    assert stored.info["fingerprint"]["broken"] == ["5"] and len(stored.predictions) == 39
