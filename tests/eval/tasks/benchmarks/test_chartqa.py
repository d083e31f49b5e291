from __future__ import annotations

from pathlib import Path

import pytest
from eval_files import base64_png, write_tsv

from vlpress.eval.tasks import open_task


def chartqa_file(folder: Path) -> Path:
    golds = [("12", "test_human"), ("Yes", "test_human"), ("50%", "test_augmented")]
    rows = [
        {"index": i, "image": base64_png(i), "question": f"{i}?", "answer": gold, "split": split}
        for i, (gold, split) in enumerate(golds)
    ]
    return write_tsv(folder / "c.tsv", rows)


def test_origin_of_questions_is_the_category(tmp_path: Path) -> None:
    task = open_task(f"chartqa={chartqa_file(tmp_path)}")
    assert (task.name, task.kind) == ("ChartQA_TEST", "chartqa")
    assert "3 rows, the published ChartQA_TEST has 2500" in task.notes
    score = task.score({"0": "12.5", "1": "No", "2": "0.49"})
    assert score.metric == "relaxed accuracy"
    assert score.percent == pytest.approx(200 / 3)
    assert score.extra == {"human": 50.0, "augmented": 100.0}
    assert [unit.category for unit in score.units] == ["human", "human", "augmented"]
    assert score.table["test_human"]["Overall"] == 0.5


def test_prompt_is_that_of_docvqa(tmp_path: Path) -> None:
    item = open_task(f"ChartQA_TEST={chartqa_file(tmp_path)}", prompt_style="default").items[0]
    text = item.messages[0]["content"][1]["text"]
    assert text == "0?\nAnswer the question using a single word or phrase."
