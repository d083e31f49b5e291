from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from eval_files import mmmu_rows, vectors, write_tsv

from vlpress.eval.tasks.benchmarks import mmmu
from vlpress.eval.tasks.files.image_store import StoredImage
from vlpress.eval.tasks.files.rows import Row
from vlpress.eval.tasks.files.tsv import read_table
from vlpress.eval.tasks.prompts import DEFAULT, QWEN2

HEAD = "2026-06"  # the rules the cases were recorded under


@pytest.mark.parametrize(
    "case", vectors("mmmu_vlmevalkit_exact_matching"), ids=lambda c: str(c["index"])
)
def test_recorded_cases(case: dict[str, Any]) -> None:
    values = {k: str(v) for k, v in case.items() if v is not None}
    item = mmmu.fields(Row(case["index"], values, ()))
    score = mmmu.score([item], {item["id"]: case["prediction"]}, HEAD)
    assert int(score.units[0].correct) == case["expected_hit"]


def test_score_shows_open_and_closed_questions_apart(tmp_path: Path) -> None:
    table = read_table(write_tsv(tmp_path / "a.tsv", mmmu_rows()))
    found = mmmu.check(table, published=False)
    assert (found.notes, found.faults) == ([], {})
    items = [mmmu.fields(row) for row in table.rows]
    score = mmmu.score(items, {"1": "B", "2": "four", "3": "B"}, HEAD)
    assert score.percent == pytest.approx(100 / 3)
    shares = {"multiple_choice": 50.0, "open": 0.0, "official": pytest.approx(100 / 3)}
    assert score.extra == shares
    assert score.parse_failures == 1
    assert set(score.table) == {"dev", "validation"}


def test_option_named_none_is_an_option(tmp_path: Path) -> None:
    table = read_table(write_tsv(tmp_path / "a.tsv", mmmu_rows()))
    assert table.rows[0].options["B"] == "None"


def test_position_of_images_depends_on_the_style() -> None:
    one, two = StoredImage.of(b"one"), StoredImage.of(b"two")
    row = Row(1, {"question": "Is <image 2> like <image 1>?"}, (one, two))
    kinds = [part.get("image") for part in mmmu.content(row, DEFAULT)]
    assert kinds == [None, two, None, one, None]
    first = mmmu.content(row, QWEN2)
    assert [part.get("image") for part in first] == [one, two, None]
    assert first[-1]["text"] == "Question: Is <image 2> like <image 1>?"


def test_placeholder_without_image_is_named(tmp_path: Path) -> None:
    rows = mmmu_rows()
    rows[1]["question"] = "How many in <image 2>?"
    table = read_table(write_tsv(tmp_path / "a.tsv", rows))
    found = mmmu.check(table, published=False)
    assert list(found.faults) == [2]
    assert "row 2 names <image 2> but holds 1 pictures" in found.faults[2]


def test_both_rule_sets_judge_the_same_answers() -> None:
    item = mmmu.fields(Row(1, {"question": "q", "answer": "4"}, ()))
    found = mmmu.score([item], {"1": "14"}, HEAD)
    assert (found.percent, found.extra["official"]) == (100.0, 0.0)
    found = mmmu.score([item], {"1": "It makes 2 pairs of electrons, thus 4"}, HEAD)
    assert (found.percent, found.extra["official"]) == (0.0, 100.0)


def test_a_list_of_gold_answers_is_read_by_the_official_rules_only() -> None:
    item = mmmu.fields(Row(1, {"question": "q", "answer": "['24/7', '3.429']"}, ()))
    found = mmmu.score([item], {"1": "3.429"}, HEAD)
    assert (found.percent, found.extra["official"]) == (0.0, 100.0)


def test_broken_rows_are_wrong_under_both_rule_sets() -> None:
    item = mmmu.fields(Row(1, {"question": "q", "answer": "4"}, ()))
    found = mmmu.score([{**item, "fault": "x"}, {**item, "id": "2", "unit": "2"}], {"2": "4"}, HEAD)
    assert (found.percent, found.extra["official"], found.broken) == (50.0, 50.0, 1)
