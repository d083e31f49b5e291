from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from eval_files import base64_png, write_tsv

from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.benchmarks import docvqa


def rows() -> list[dict[str, Any]]:
    answers = ["['12 May', 'May 12']", "University of California", "['4.5']"]
    return [
        {"index": i, "image": base64_png(i), "question": f"What is {i}?", "answer": answer}
        for i, answer in enumerate(answers)
    ]


def test_a_file_is_scored_by_the_mean_similarity(tmp_path: Path) -> None:
    task = open_task(f"DocVQA_VAL={write_tsv(tmp_path / 'd.tsv', rows())}")
    score = task.score({"0": "May 12", "1": "university of californi", "2": "seven"})
    assert (score.metric, score.n_rows, len(score.units)) == ("ANLS", 3, 3)
    assert score.percent == pytest.approx(100 * (1 + 23 / 24 + 0) / 3)
    assert score.extra["similar"] == pytest.approx(100 * 2 / 3)
    assert score.table["none"]["Overall"] == pytest.approx(score.percent / 100)
    assert [unit.correct for unit in score.units] == [True, True, False]


def test_prompts_ask_for_a_short_answer(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "d.tsv", rows())
    texts = {}
    for style in ("default", "qwen2-vl"):
        item = open_task(f"DocVQA_VAL={path}", prompt_style=style).items[0]
        image, text = item.messages[0]["content"]
        assert image["type"] == "image"
        texts[style] = text["text"]
    assert texts == {
        "default": "What is 0?\nAnswer the question using a single word or phrase.",
        "qwen2-vl": "What is 0?\nPlease try to answer the question with short words or phrases "
        "if possible.",
    }


def test_a_broken_row_counts_as_zero() -> None:
    item = {"id": "1", "unit": "1", "answers": [""], "category": "c", "group": "g", "split": None}
    assert docvqa.score([item], {"1": ""}, "2025-08").percent == 100.0
    score = docvqa.score([{**item, "fault": "it has no answer"}], {}, "2025-08")
    assert (score.percent, score.broken) == (0.0, 1)
