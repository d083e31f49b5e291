from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from eval_files import ocrbench_rows, vectors, write_tsv

from vlpress.eval.tasks.benchmarks import ocrbench
from vlpress.eval.tasks.files.tsv import read_table


def items_and_predictions() -> tuple[list[dict[str, Any]], dict[str, str]]:
    cases = vectors("ocrbench")
    items = [
        {
            "id": case["id"],
            "unit": case["id"],
            "answers": case["answers"],
            "category": case["category"],
            "group": ocrbench.GROUPS[case["category"]],
        }
        for case in cases
    ]
    return items, {case["id"]: case["prediction"] for case in cases}


@pytest.mark.parametrize("case", vectors("ocrbench"), ids=lambda c: c["id"])
def test_recorded_cases(case: dict[str, Any]) -> None:
    hit = ocrbench.ocrbench_hit(case["category"], case["answers"], case["prediction"])
    assert int(hit) == case["expected"]


def test_recorded_aggregate() -> None:
    items, predictions = items_and_predictions()
    score = ocrbench.score(items, predictions, "2025-08")
    assert score.table == vectors("ocrbench_aggregate")["expected"]
    assert score.percent == pytest.approx(100 * 23 / 44)
    assert (score.n_rows, score.parse_failures) == (44, 0)


def test_ten_categories_in_five_groups() -> None:
    assert len(ocrbench.GROUPS) == 10
    assert len(set(ocrbench.GROUPS.values())) == 5


def test_unknown_category_and_missing_answer_break_their_rows(tmp_path: Path) -> None:
    rows = ocrbench_rows(4)
    table = read_table(write_tsv(tmp_path / "a.tsv", rows))
    assert ocrbench.check(table, published=False).faults == {}
    rows[2]["category"], rows[1]["answer"] = "Runes", ""
    table = read_table(write_tsv(tmp_path / "a.tsv", rows))
    found = ocrbench.check(table, published=True)
    assert found.faults == {1: "it has no answer", 2: "OCRBench has no category 'Runes'"}


def test_broken_rows_are_wrong_though_an_empty_answer_always_matches() -> None:
    item = {"id": "1", "unit": "1", "answers": [""], "category": "Doc-oriented VQA", "group": "g"}
    assert ocrbench.score([item], {"1": "x"}, "2025-08").percent == 100.0
    score = ocrbench.score([{**item, "fault": "it has no answer"}], {}, "2025-08")
    assert (score.percent, score.broken, score.n_rows) == (0.0, 1, 1)
