"""Evaluation and generation with Qwen-VL of 2023, from a checkpoint with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from qwen_v1_models import write_v1_checkpoint

from vlpress.eval.api import evaluate
from vlpress.eval.tasks.coordinates import default_coordinates
from vlpress.eval.tasks.prompts import DEFAULT, default_prompt_style
from vlpress.quant.generate import generate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen-v1-eval")
    write_v1_checkpoint(path)
    return path


@pytest.mark.usefixtures("short_answers")
def test_an_evaluation_from_a_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    scores = evaluate(folder, bench=["builtin-mmbench"], out=out, limit=2)
    assert list(scores["benchmarks"]) == ["builtin-mmbench"]
    lines = (out / "builtin-mmbench" / "predictions.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    # Two questions in all rotations of their choices.
    assert sum("prediction" in record for record in records) == 8


def test_an_answer_from_a_folder(folder: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    Image.new("RGB", (90, 40), (200, 30, 30)).save(image)
    answers = [
        generate(folder, prompt="the thing?", image=[image] * count, max_new_tokens=4)
        for count in (1, 2)
    ]
    one, two = (answer["prompt_tokens"] for answer in answers)
    assert two - one == len("Picture 2: ") + len("\n") + 2 + 16  # no merges, 4 x 4 queries
    assert all(answer["tokens"] == 4 or answer["stopped"] for answer in answers)
    with pytest.raises(ValueError, match="images only"):
        generate(folder, prompt="the thing?", video=image, max_new_tokens=4)


def test_defaults_of_the_family() -> None:
    assert default_prompt_style("qwen") == DEFAULT
    assert default_coordinates("qwen") == "qwen2-vl"  # thousandths of width and height
