from __future__ import annotations

from pathlib import Path

import pytest
from eval_files import base64_png, write_tsv

from vlpress.eval.tasks import open_task


def write_rows(folder: Path, answers: list[list[str]]) -> Path:
    rows = [
        {"index": i, "image": base64_png(i), "question": f"{i}?", "answer": repr(texts)}
        for i, texts in enumerate(answers)
    ]
    return write_tsv(folder / "t.tsv", rows)


def test_score_is_the_mean_agreement(tmp_path: Path) -> None:
    people = [["stop"] * 10, ["30"] * 2 + ["35"] * 8, ["dakota digital"] * 10]
    task = open_task(f"textvqa={write_rows(tmp_path, people)}")
    score = task.score({"0": "Stop.", "1": "30", "2": "dakota"})
    assert (task.name, score.metric) == ("TextVQA_VAL", "VQA accuracy")
    assert score.percent == pytest.approx(100 * (1 + 0.6 + 0) / 3)
    assert score.extra["given"] == pytest.approx(200 / 3)
    assert [unit.correct for unit in score.units] == [True, True, False]


def test_a_row_with_one_answer_is_broken(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [["a", "b"], ["a"], ["a", "a"]])
    task = open_task(f"textvqa={path}")
    assert [item.id for item in task.items] == ["0", "2"]
    assert "1: it has the answer of one person" in task.notes[-1]
