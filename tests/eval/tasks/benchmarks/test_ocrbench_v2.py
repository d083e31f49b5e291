from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from eval_files import base64_png, benchmark_vectors, write_tsv

from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.benchmarks.ocrbench_v2 import LEFT_OUT, TYPES, fields
from vlpress.eval.tasks.benchmarks.ocrbench_v2 import score as score_items
from vlpress.eval.tasks.files.rows import Row

ABSENT = {"eval": "without eval", "bbox": "without bbox", "content": "without content"}


def row(index: int, category: str, answer: str, **cells: str) -> dict[str, Any]:
    image = base64_png(index)
    values = {"index": index, "image": image, "question": "What?", "answer": answer}
    return {**values, "category": category, **ABSENT, **cells}


ROWS = [
    row(0, "text recognition en", "['CENTRE']"),
    row(1, "text counting en", "['10']", eval="regression"),
    row(2, "cognition VQA cn", "['北京']"),
    row(3, "full-page OCR en", "['a page']"),
    row(4, "handwritten answer extraction cn", "['x']", question="简答题"),
    row(5, "text spotting en", "['']", bbox="[[0, 0, 9, 9]]", content="['hi']"),
]


@pytest.mark.parametrize("case", benchmark_vectors("ocrbench_v2"))
def test_agrees_with_vlmevalkit(case: dict[str, Any]) -> None:
    columns = {"answer": "answers", "category": "type", "question": "question"}
    values = {column: str(case[key]) for column, key in columns.items()}
    values |= {key: str(case[key]) for key in ABSENT}
    item = fields(Row(0, values, ()))
    score = score_items([item], {"0": case["prediction"]}, "2025-08")
    # Their value of a tree may be negative.
    assert score.percent == pytest.approx(100 * max(case["expected"], 0), abs=1e-9)


def test_vectors_cover_all_types() -> None:
    covered = {case["type"] for case in benchmark_vectors("ocrbench_v2")}
    same_metric = {"math QA en", "document classification en", "cognition VQA en", "diagram QA en"}
    same_metric |= {"reasoning VQA en", "ASCII art classification en"}
    assert set(TYPES) == covered | same_metric | set(LEFT_OUT)
    assert len(TYPES) == 30


def test_types_without_a_metric_are_left_out_and_named(tmp_path: Path) -> None:
    task = open_task(f"ocrbench-v2={write_tsv(tmp_path / 'o.tsv', ROWS)}")
    assert [item.id for item in task.items] == ["0", "1", "2", "5"]
    assert task.fingerprint["rows"] == 4
    (note,) = (note for note in task.notes if "left out" in note)
    assert note.startswith("2 of 6 rows are left out")
    assert "full-page OCR en (1), handwritten answer extraction cn (简答) (1)" in note
    answers = {"0": "centre", "1": "12", "2": "上海", "5": "[[0, 0, 9, 9, 'hi']]"}
    score = task.score(answers)
    assert (score.metric, score.n_rows) == ("OCRBench v2 score", 4)
    assert score.percent == pytest.approx(100 * (1 + 0.8 + 0 + 1) / 4)
    assert score.extra["English"] == pytest.approx(100 * (1 + 0.8 + 1) / 3)
    assert (score.extra["Chinese"], score.extra["partly right"]) == (0.0, 75.0)
    assert score.table["en_mathematical_calculation"] == pytest.approx(0.8)


def test_a_file_of_left_out_types_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"all 1 rows .*full-page OCR en \(1\)"):
        open_task(f"ocrbench-v2={write_tsv(tmp_path / 'o.tsv', [ROWS[3]])}")


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"category": "dancing en"}, "no category 'dancing en'"),
        ({"eval": "by eye"}, "its eval is 'by eye'"),
        ({"category": "text counting en"}, "exact match, regression"),
        ({"category": "text counting en", "eval": "regression"}, "CENTRE"),
        ({"category": "table parsing en"}, "neither HTML nor Markdown"),
        ({"category": "chart parsing en"}, "'CENTRE' is no dictionary"),
        ({"category": "key information extraction en"}, "'CENTRE' is no dictionary"),
        ({"category": "text grounding en"}, "not four coordinates"),
        ({"category": "text spotting en"}, "cannot be scored"),
        ({"answer": ""}, "has no answer"),
    ],
)
def test_rows_that_cannot_be_scored_are_broken(
    tmp_path: Path, changed: dict[str, str], fault: str
) -> None:
    path = write_tsv(tmp_path / "o.tsv", [{**ROWS[0], **changed}, *ROWS[1:3]])
    task = open_task(f"OCRBench_v2={path}")
    assert [item.id for item in task.items] == ["1", "2"]
    assert fault in task.notes[-1]


@pytest.mark.parametrize(("style", "suffix"), [("default", ""), ("qwen2-vl", " if possible.")])
def test_prompts_are_those_of_ocrbench(tmp_path: Path, style: str, suffix: str) -> None:
    path = write_tsv(tmp_path / "o.tsv", ROWS[:1])
    item = open_task(f"OCRBench_v2={path}", prompt_style=style).items[0]
    text = item.messages[0]["content"][1]["text"]
    assert text.startswith("What?") and text.endswith(suffix or "What?")
