from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from eval_files import mmbench_rows, vectors, write_tsv

from vlpress.eval.tasks import TASK_KINDS
from vlpress.eval.tasks.benchmarks import mmbench
from vlpress.eval.tasks.files.image_store import StoredImage
from vlpress.eval.tasks.files.rows import BenchmarkTable, Findings, Row
from vlpress.eval.tasks.files.tsv import read_table
from vlpress.eval.tasks.prompts import DEFAULT, QWEN2, Content
from vlpress.eval.tasks.task import accuracy_table

HEAD = "2026-06"  # the rules the circular cases were recorded under


def as_messages(content: Content) -> list[dict[str, str]]:
    return [
        {"type": part["type"], "value": part["text"]}
        if part["type"] == "text"
        else {"type": "image", "value": part["image"].read().decode()}
        for part in content
    ]


@pytest.mark.parametrize("case", vectors("prompts"), ids=lambda c: c["id"])
@pytest.mark.parametrize(
    ("style", "column"),
    [(QWEN2, "expected_qwen2_vl_custom"), (DEFAULT, "expected_qwen2_5_vl_default")],
)
def test_recorded_prompts(case: dict[str, Any], style: str, column: str) -> None:
    kinds = {"MMBench_DEV_EN": "mmbench", "MMBench_DEV_CN": "mmbench", "MMMU_DEV_VAL": "mmmu"}
    kind = TASK_KINDS[kinds.get(case["dataset"], "ocrbench")]
    values = {k: v for k, v in case["line"].items() if v is not None and k != "_img"}
    row = Row(1, values, tuple(StoredImage.of(name.encode()) for name in case["line"]["_img"]))
    assert as_messages(kind.content(row, style)) == case[column]


@pytest.mark.parametrize("case", vectors("circular"), ids=lambda c: c["id"])
def test_recorded_circular_cases(case: dict[str, Any]) -> None:
    items = []
    for row in case["rows"]:
        values = {k: str(v) for k, v in row.items() if v is not None}
        items.append(mmbench.fields(Row(row["index"], {**values, "category": "c"}, ())))
    predictions = {str(row["index"]): row["prediction"] for row in case["rows"]}
    score = mmbench.score(items, predictions, HEAD)
    assert {unit.id: int(unit.correct) for unit in score.units} == case["expected_hits"]


def test_recorded_accuracy_tables() -> None:
    whole, splits = vectors("report_acc")
    [(split, table)] = accuracy_table(whole["rows"]).items()
    assert {"split": split, **table} == whole["expected"]
    assert accuracy_table(splits["rows"]) == splits["expected_by_split"]


def load(tmp_path: Path, rows: list[dict[str, object]]) -> BenchmarkTable:
    return read_table(write_tsv(tmp_path / "a.tsv", rows))


def test_score_counts_questions_not_rows(tmp_path: Path) -> None:
    table = load(tmp_path, mmbench_rows(4))
    assert mmbench.check(table, published=False) == Findings()
    items = [mmbench.fields(row) for row in table.rows]
    predictions = {item["id"]: item["answer"] for item in items}
    predictions["1000241"] = "no idea"
    predictions["2000242"] = "Cannot determine the answer"
    score = mmbench.score(items, predictions, "2025-08")
    assert (score.percent, score.n_rows, len(score.units)) == (50.0, 16, 4)
    assert (score.parse_failures, score.refusals) == (1, 1)
    assert score.extra == {"vanilla_0": 100.0, "vanilla_all": 87.5}
    assert score.table["dev"]["Overall"] == 0.5
    assert score.units[0].answers == ("cat", "no idea", "cat", "cat")


def test_always_the_same_letter_scores_nothing(tmp_path: Path) -> None:
    items = [mmbench.fields(row) for row in load(tmp_path, mmbench_rows(4)).rows]
    score = mmbench.score(items, {item["id"]: "A" for item in items}, HEAD)
    assert score.percent == 0.0
    assert score.extra["vanilla_all"] == 25.0


def test_explicit_group_column_wins(tmp_path: Path) -> None:
    rows = mmbench_rows(1)
    for k, row in enumerate(rows):
        row["index"], row["g_index"] = f"q{k}", "q0"
        row["image"] = row["image"] if k == 0 else "q0"
    table = load(tmp_path, rows)
    assert mmbench.check(table, published=False) == Findings()
    assert {mmbench.fields(row)["unit"] for row in table.rows} == {"q0"}


def broken(name: str) -> list[dict[str, object]]:
    rows = mmbench_rows(2)
    match name:
        case "partial":
            del rows[3]
        case "options":
            rows[1]["B"] = "horse" if rows[1]["answer"] != "B" else rows[1]["B"]
            rows[1]["C"] = "horse" if rows[1]["answer"] != "C" else rows[1]["C"]
        case "answer":
            rows[1]["answer"] = "A" if rows[1]["answer"] != "A" else "B"
        case "orphan":
            image = rows.pop(0)["image"]
            for row in rows[:3]:
                row["image"] = image
    return rows


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("partial", "has not one row per option"),
        ("options", "has options that differ between rotations"),
        ("answer", "has a right answer that differs between rotations"),
    ],
)
def test_group_faults_break_the_rows_or_are_noted(tmp_path: Path, fault: str, message: str) -> None:
    table = load(tmp_path, broken(fault))
    found = mmbench.check(table, published=False)
    group = [row.index for row in table.rows if int(row.index) % 1_000_000 == 241]
    assert found.faults == dict.fromkeys(group, f"its question {message}")
    found = mmbench.check(table, published=True)
    assert found.faults == {}
    assert message in " ".join(found.notes)


def test_a_question_with_a_broken_row_is_wrong_for_any_answers(tmp_path: Path) -> None:
    items = [mmbench.fields(row) for row in load(tmp_path, mmbench_rows(2)).rows]
    items[2] = {**items[2], "fault": "its image does not decode"}
    said = {item["id"]: item["answer"] for item in items if item is not items[2]}
    score = mmbench.score(items, said, HEAD)
    assert [unit.correct for unit in score.units] == [False, True]
    assert (score.broken, score.n_rows, score.parse_failures) == (1, 8, 0)
    assert score.extra["vanilla_all"] == 87.5


def test_group_without_its_base_row_is_refused(tmp_path: Path) -> None:
    table = load(tmp_path, broken("orphan"))
    with pytest.raises(ValueError, match=r"rows 241 .*base row"):
        mmbench.check(table, published=True)


def test_unrotated_questions_are_noted(tmp_path: Path) -> None:
    rows = [row for row in mmbench_rows(3) if int(str(row["index"])) < 1_000_000]
    [note] = mmbench.check(load(tmp_path, rows), published=False).notes
    assert note.startswith("3 of 3 questions stand in the file once")


def test_named_rows_without_groups_are_refused(tmp_path: Path) -> None:
    rows = mmbench_rows(1)[:1]
    rows[0]["index"] = "first"
    with pytest.raises(ValueError, match="g_index"):
        mmbench.check(load(tmp_path, rows), published=False)
