from __future__ import annotations

from typing import Any

import pytest
from eval_files import benchmark_vectors

from vlpress.eval.tasks.coordinates import (
    COORDINATES,
    default_coordinates,
    find_coordinates,
    predicted_box,
    predicted_point,
)
from vlpress.eval.tasks.matching.boxes import clip, iou
from vlpress.model.families import FAMILIES

SIZE, RESIZED = (200.0, 100.0), (560.0, 280.0)


def test_the_rules_of_families_exist() -> None:
    rules = {family: default_coordinates(family) for family in FAMILIES}
    without = {family for family, rule in rules.items() if rule is None}
    assert without == {"llava", "llava_qwen2"}
    assert {rule for rule in rules.values() if rule is not None} <= set(COORDINATES)
    assert default_coordinates("unknown") is None


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'qwen9'.*qwen2-vl, qwen2\.5-vl, qwen3-vl, vlmevalkit"):
        find_coordinates("qwen9")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen2-vl", (20.0, 20.0, 100.0, 50.0)),
        ("qwen3-vl", (20.0, 20.0, 100.0, 50.0)),
        ("qwen2.5-vl", (100 / 2.8, 200 / 2.8, 500 / 2.8, 500 / 2.8)),
        ("vlmevalkit", (20.0, 20.0, 100.0, 50.0)),
    ],
)
def test_units_of_a_box(name: str, expected: tuple[float, ...]) -> None:
    rule = COORDINATES[name]
    assert predicted_box(rule, "[100, 200, 500, 500]", SIZE, RESIZED) == pytest.approx(expected)
    assert predicted_box(rule, "nothing", SIZE, RESIZED) is None


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [
        ("qwen2-vl", "(100,200),(500,600)", (60.0, 40.0)),
        ("qwen3-vl", '{"point_2d": [500, 500]}', (100.0, 50.0)),
        ("qwen2.5-vl", '{"point_2d": [280, 140]}', (100.0, 50.0)),
        ("vlmevalkit", "x=100, y=50", (100.0, 50.0)),
        ("vlmevalkit", "x=0.25, y=1", (50.0, 100.0)),
    ],
)
def test_units_of_a_point(name: str, answer: str, expected: tuple[float, float]) -> None:
    assert predicted_point(COORDINATES[name], answer, SIZE, RESIZED) == pytest.approx(expected)


def test_pixels_need_the_input_size() -> None:
    with pytest.raises(ValueError, match="--reference"):
        predicted_box(COORDINATES["qwen2.5-vl"], "[1, 2, 3, 4]", SIZE, None)


@pytest.mark.parametrize("case", benchmark_vectors("refcoco"))
def test_overlaps_agree_with_vlmevalkit(case: dict[str, Any]) -> None:
    box = predicted_box(COORDINATES["vlmevalkit"], case["prediction"], case["size"], None)
    overlap = 0.0 if box is None else iou(clip(box, case["size"]), case["box"])
    assert overlap == pytest.approx(case["expected"], abs=1e-12)
