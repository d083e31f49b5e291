from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from eval_files import base64_png, benchmark_vectors, write_tsv

from vlpress.eval.tasks import open_task

SIZE = (200, 100)


def rows(bbox: str = "[20, 10, 101, 51]", size: tuple[int, int] = SIZE) -> list[dict[str, Any]]:
    return [
        {
            "index": index,
            "image": base64_png(index, size),
            "question": f"open {kind}",
            "bbox": bbox,
            "data_type": kind,
            "data_source": "ios",
        }
        for index, kind in enumerate(("text", "icon"))
    ]


def test_a_box_counts_by_its_centre(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "s.tsv", rows())
    task = open_task(f"ScreenSpot_Mobile={path}", coordinates="qwen3-vl")
    # The element is from (100, 100) to (600, 600) in thousandths, its centre at (350, 350).
    answers = {"0": '{"point_2d": [600, 600]}', "1": "[500, 500, 800, 700]"}
    score = task.score(answers)
    assert (score.metric, score.percent, score.parse_failures) == ("click accuracy", 50.0, 0)
    assert [unit.category for unit in score.units] == ["text", "icon"]
    distances = [(50**2 + 25**2) ** 0.5, (60**2 + 25**2) ** 0.5]
    expected = 100 * sum(distances) / 2 / (200**2 + 100**2) ** 0.5
    assert score.extra["distance to centre"] == pytest.approx(expected)
    assert score.table["none"] == {"Overall": 0.5, "ios": 0.5, "text": 1.0, "icon": 0.0}
    assert task.score({"0": "I cannot", "1": ""}).parse_failures == 2
    far = task.score({"0": f"[{'9' * 5000}, 1]", "1": "(-1e5, 1)"})
    assert (far.percent, far.parse_failures) == (0.0, 1)
    assert far.extra["distance to centre"] == 100.0


def test_prompts_of_the_rules(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "s.tsv", rows())
    kinds, texts = {}, {}
    for name in ("qwen2-vl", "qwen2.5-vl", "vlmevalkit"):
        content = open_task(f"ScreenSpot_Web={path}", coordinates=name).items[0].messages[0]
        kinds[name] = [part["type"] for part in content["content"]]
        texts[name] = content["content"][-1]["text"]
    assert kinds["qwen2.5-vl"] == ["image", "text"]
    assert kinds["vlmevalkit"] == ["text", "image", "text"]
    assert texts["qwen2-vl"].endswith("instruction: open text")
    assert texts["qwen2.5-vl"].endswith('like this: {"point_2d": [x, y]}')
    assert texts["vlmevalkit"].endswith("`pyautogui.click`:\nopen text")


@pytest.mark.parametrize("case", benchmark_vectors("screenspot"))
def test_agrees_with_vlmevalkit(tmp_path: Path, case: dict[str, Any]) -> None:
    path = write_tsv(tmp_path / "s.tsv", rows(case["bbox"], tuple(case["size"]))[:1])
    task = open_task(f"ScreenSpot_Web={path}", coordinates="vlmevalkit")
    assert task.score({"0": case["prediction"]}).percent == 100 * case["expected"]


@pytest.mark.parametrize("bbox", ["[1, 2, 3]", "left", "[150, 10, 80, 20]", "[30, 20, -5, 5]"])
def test_boxes_outside_their_image_are_broken(tmp_path: Path, bbox: str) -> None:
    first, second = rows()
    path = write_tsv(tmp_path / "s.tsv", [{**first, "bbox": bbox}, second])
    task = open_task(f"ScreenSpot_Web={path}", coordinates="qwen3-vl")
    assert [item.id for item in task.items] == ["1"]
