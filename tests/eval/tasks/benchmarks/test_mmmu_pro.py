from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from eval_files import base64_png, write_tsv

from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.prompts import STYLES

TEN = dict(zip("ABCDEFGHIJ", map(str, range(10)), strict=True))


def rows() -> list[dict[str, Any]]:
    base = {"image": base64_png(1), **TEN, "l2-category": "Science"}
    return [
        {"index": 1, "question": "<image 1> How many?", "answer": "J", "category": "Math", **base},
        {"index": 2, "question": "Which <image 1>?", "answer": "A", "category": "Physics", **base},
    ]


@pytest.mark.parametrize("style", STYLES)
def test_standard_prompt_has_ten_options(tmp_path: Path, style: str) -> None:
    path = write_tsv(tmp_path / "p.tsv", rows())
    item = open_task(f"mmmu-pro={path}", prompt_style=style).items[0]
    options = "".join(f"{letter}. {text}\n" for letter, text in TEN.items())
    texts = [part.get("text") for part in item.messages[0]["content"]]
    assert texts == [
        "Question: ",
        None,
        f" How many?\nOptions:\n{options}"
        "Answer directly with the option letter from the given choices. ",
    ]


def test_scores_by_both_rules(tmp_path: Path) -> None:
    task = open_task(f"mmmu-pro={write_tsv(tmp_path / 'p.tsv', rows())}")
    assert (task.name, task.kind) == ("MMMU_Pro_10c", "mmmu_pro")
    score = task.score({"1": "J", "2": "It shows nothing.\nAnswer: A"})
    assert score.percent == pytest.approx(100)
    assert score.extra == {"official": 100.0}
    # A letter without a space around it is read by the authors' rules alone.
    score = task.score({"1": "Answer: $J$", "2": "C"})
    assert (score.percent, score.parse_failures) == (0.0, 1)
    assert score.extra == {"official": 50.0}
    assert score.table["none"] == {"Overall": 0.0, "Science": 0.0, "Math": 0.0, "Physics": 0.0}


def test_vision_prompt_has_no_question(tmp_path: Path) -> None:
    without = [{k: v for k, v in row.items() if k != "question"} for row in rows()]
    task = open_task(f"mmmu-pro-vision={write_tsv(tmp_path / 'v.tsv', without)}")
    image, text = task.items[0].messages[0]["content"]
    assert image["type"] == "image"
    assert text["text"] == (
        "Answer the following multiple-choice question in the image. "
        "Answer directly with the option letter from the given choices. "
    )
    assert task.score({"1": "J", "2": "B"}).percent == 50.0
