"""The path of a newcomer with own photos, as `examples/own_photos.sh` shows it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import paths
import pytest
from reference_processor import reference_processor
from transformers import AutoModelForImageTextToText


def answers(folder: Path) -> dict[str, list[str]]:
    return {
        side: (folder / "out" / "eval" / side / "photos" / "predictions.jsonl")
        .read_text("utf-8")
        .splitlines()[1:]
        for side in ("base", "candidate")
    }


def answer_of_transformers(checkpoint: Path, image: Path) -> str:
    """The answer of the loaded checkpoint; `ask_transformers.py` needs torchvision in addition."""
    processor = reference_processor(checkpoint)
    model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="auto")
    content = [
        {"type": "image", "path": str(image)},
        {"type": "text", "text": "What does the image contain?"},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    tokens = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    text: str = processor.tokenizer.decode(
        tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return text


@pytest.mark.slow
def test_own_photos_from_the_table_to_an_answer_in_transformers(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **{"PHOTOS": "60", "CALIB": "16", "MORE": "20"},
    }
    done = subprocess.run(
        [paths.ROOT / "examples" / "own_photos.sh", tmp_path / "mine"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "mine"
    assert "photos: 20 new; 44 stored answers are kept" in done.stderr
    assert {side: len(lines) for side, lines in answers(folder).items()} == {
        "base": 64,
        "candidate": 64,
    }
    report = json.loads((folder / "out" / "report" / "report.json").read_text("utf-8"))
    assert report["benchmarks"]["photos"]["n"] == 64
    assert report["benchmarks"]["photos"]["base"] > 60  # the model can see
    assert report["fidelity"]["units"] == 64
    assert report["calibration"]["samples"] == 16 and not report["calibration"]["warnings"]
    with (folder / "more.csv").open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 20
    answer = answer_of_transformers(folder / "out" / "checkpoint", folder / "photos" / "1000.png")
    assert answer.strip() and answer in done.stdout  # vlpress printed it too
