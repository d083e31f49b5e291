"""LLaVA from a checkpoint to scores: prompts by its chat template, and the whole pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from llava_models import IMAGE, SIDE, TOKENS, llava_config, write_llava

from vlpress.eval.answering.prompt_lengths import placeholders
from vlpress.eval.api import evaluate
from vlpress.eval.run import run
from vlpress.eval.tasks import open_task
from vlpress.model.processing.processor import Processor

pytestmark = pytest.mark.usefixtures("short_answers")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = llava_config(text_config={"num_hidden_layers": 2}, vision_config={"num_hidden_layers": 3})
    return write_llava(tmp_path_factory.mktemp("llava"), raw, dtype=torch.bfloat16)


def test_questions_pass_the_chat_template(source: Path) -> None:
    processor = Processor.from_folder(source)
    item = open_task("builtin-ocrbench").items[0]
    # The length of a prompt is known without reading pixels.
    (visual,) = placeholders(item, processor)
    assert visual.grid == (1, SIDE // 14, SIDE // 14)
    prompt = processor.encode(item.messages, visuals=[visual])
    text = processor.tokenizer.decode(prompt.input_ids)
    assert text.startswith("<s> USER: " + IMAGE * TOKENS) and text.endswith(" ASSISTANT:")


def test_evaluation(source: Path, tmp_path: Path) -> None:
    scores = evaluate(
        model=source, bench="builtin-ocrbench", out=tmp_path / "out", limit=3, device="cpu"
    )
    assert scores["benchmarks"]["builtin-ocrbench"]["n"] == 3
    lines = (tmp_path / "out" / "builtin-ocrbench" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 3
    pixels = json.loads(lines[0])["fingerprint"]["pixels"]
    assert pixels["min"] == pixels["max"] == SIDE**2 and pixels["fixed"] == ["fixed", SIDE, SIDE]


@pytest.mark.slow
def test_run(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(
        model=source,
        out=out,
        recipe="w4a16",
        calib_samples=2,
        bench="builtin-ocrbench",
        limit=3,
        device="cpu",
    )
    report = json.loads((out / "report" / "report.json").read_text())
    assert report["benchmarks"]["builtin-ocrbench"]["n"] == 3
    assert report["fidelity"]["kl_mean"] > 0
    assert report["size"]["candidate_bytes"] < report["size"]["base_bytes"]
