from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from eval_files import base64_png, write_tsv

from vlpress.eval.tasks import open_task

SIZE = (200, 100)
BOXES = {"RefCOCO_val": (20, 10, 120, 60), "RefCOCO_testA": (0, 0, 200, 100)}


def rows() -> list[dict[str, Any]]:
    """Two splits whose indices repeat, as in the published file."""
    return [
        {
            "index": 0,
            "image": base64_png(number, SIZE),
            "question": f"Where is <ref>cat {number}</ref>?",
            "split": split,
            "width": SIZE[0],
            "height": SIZE[1],
            **dict(zip(("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"), box, strict=True)),
        }
        for number, (split, box) in enumerate(BOXES.items())
    ]


def open_rows(folder: Path, coordinates: str | None, changed: dict[str, Any] | None = None) -> Any:
    written = [{**row, **(changed or {})} for row in rows()]
    return open_task(f"refcoco={write_tsv(folder / 'r.tsv', written)}", coordinates=coordinates)


def test_score_is_the_share_of_overlaps_of_half(tmp_path: Path) -> None:
    task = open_rows(tmp_path, "qwen3-vl")
    assert [item.id for item in task.items] == ["RefCOCO_val_0", "RefCOCO_testA_0"]
    half = '```json\n[{"bbox_2d": [0, 0, 1000, 500], "label": "cat"}]\n```'
    score = task.score({"RefCOCO_val_0": "It is not there.", "RefCOCO_testA_0": half})
    assert (score.metric, score.percent, score.parse_failures) == ("Acc@0.5", 50.0, 1)
    assert score.extra == {"mean IoU": 25.0, "mean of splits": 50.0}
    assert [unit.correct for unit in score.units] == [False, True]
    assert score.table["RefCOCO_testA"] == {"Precision@1": 100.0, "Average IoU": 0.5, "Samples": 1}
    assert score.table["Average"] == {"Precision@1": 50.0, "Average IoU": 0.25, "Samples": 2}
    below = task.score({"RefCOCO_val_0": "", "RefCOCO_testA_0": "[0, 0, 1000, 499]"})
    assert (below.percent, below.extra["mean IoU"]) == (0.0, pytest.approx(24.95))


def test_the_rule_decides_prompt_and_fingerprint(tmp_path: Path) -> None:
    tasks = {name: open_rows(tmp_path, name) for name in ("qwen3-vl", "vlmevalkit")}
    texts = {name: task.items[0].messages[0]["content"][1]["text"] for name, task in tasks.items()}
    assert texts == {
        "qwen3-vl": 'Locate the object that matches the description "cat 0" in the image. '
        "Report its bbox coordinates in JSON format.",
        "vlmevalkit": "Where is <ref>cat 0</ref>?",
    }
    assert [t.fingerprint["coordinates"] for t in tasks.values()] == ["qwen3-vl", "vlmevalkit"]
    assert len({task.fingerprint["prompt_hash"] for task in tasks.values()}) == 2


def test_without_a_rule_the_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--coordinates.*qwen3-vl"):
        open_rows(tmp_path, None)


def test_boxes_may_be_fractions_in_the_answer(tmp_path: Path) -> None:
    edges = dict.fromkeys(("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"), "")
    task = open_rows(tmp_path, "qwen3-vl", {**edges, "answer": "[0.1, 0.1, 0.6, 0.6]"})
    assert task.items[0].fields["box"] == pytest.approx([20, 10, 120, 60])


@pytest.mark.parametrize(
    ("changed", "fault"),
    [({"bbox_x2": 20}, "has no area"), ({"bbox_x1": "", "answer": ""}, "has no box")],
)
def test_rows_without_a_box_are_broken(tmp_path: Path, changed: dict[str, Any], fault: str) -> None:
    first, second = rows()
    path = write_tsv(tmp_path / "r.tsv", [{**first, **changed}, second])
    task = open_task(f"refcoco={path}", coordinates="qwen3-vl")
    assert len(task.items) == 1
    assert fault in task.notes[-1]
