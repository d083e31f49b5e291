"""Damaged benchmark files end in one line that names the file, or in broken rows that count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eval_files import base64_png, mmbench_rows, mmmu_rows, ocrbench_rows, write_tsv
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlpress.eval.tasks import open_task

DAMAGED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FILES: dict[str, list[dict[str, object]]] = {
    "MMBench_DEV_EN": mmbench_rows(8),
    "OCRBench": ocrbench_rows(24),
    "MMMU_DEV_VAL": [{**row, "split": "validation"} for row in mmmu_rows()],
}
CELL = st.one_of(
    st.just(""),
    st.sampled_from(["nan", "[", "['a'", "[]", "-1", "1e9", "\ufeff", "<image 9>", "A", "\x00"]),
    st.text(st.characters(codec="utf-8"), max_size=90),
)
QUESTIONS = [
    {"image": base64_png(n), "question": f"q{n}", "answer": "x", "category": "c"} for n in range(21)
]


def outcome(spec: str, rows: int) -> str:
    """Open a benchmark and score it; what came of it."""
    try:
        task = open_task(spec)
    except ValueError as error:
        message = str(error)
        assert spec.rpartition("/")[2] in message
        assert "\n" not in message.replace("\\n", "")
        return "refused"
    assert len(task.fields) == rows
    score = task.score({item.id: "A" for item in task.items})
    assert score.n_rows == rows
    assert score.broken == rows - len(task.items)
    assert sum(len(unit.rows) for unit in score.units) == rows
    assert (score.broken > 0) == any("are broken and count as wrong" in n for n in task.notes)
    return "broken rows" if score.broken else "sound"


@DAMAGED
@given(st.sampled_from(sorted(FILES)), st.data())
def test_damaged_cells(tmp_path: Path, name: str, data: st.DataObject) -> None:
    rows = [dict(row) for row in FILES[name]]
    row = data.draw(st.sampled_from(rows))
    column = data.draw(st.sampled_from(sorted(row)))
    row[column] = data.draw(CELL)
    path = write_tsv(tmp_path / "a.tsv", rows)
    outcome(f"{name}={path}", len(rows))


@DAMAGED
@given(st.integers(0, 23), st.integers(0, 10_000), st.sampled_from(["cut", "flip", "noise"]))
def test_damaged_base64(tmp_path: Path, number: int, place: int, how: str) -> None:
    rows = [dict(row) for row in FILES["OCRBench"]]
    cell = str(rows[number]["image"])
    place %= len(cell)
    after = {"cut": "", "flip": "*" + cell[place + 1 :], "noise": cell[place:][::-1]}
    rows[number]["image"] = cell[:place] + after[how]
    path = write_tsv(tmp_path / "a.tsv", rows)
    assert outcome(f"OCRBench={path}", len(rows)) != "refused"


@DAMAGED
@given(st.data())
def test_damaged_bytes_of_a_file(tmp_path: Path, data: st.DataObject) -> None:
    path = write_tsv(tmp_path / "a.tsv", FILES["MMMU_DEV_VAL"])
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=4))
    path.write_bytes(raw)
    try:
        task = open_task(f"MMMU_DEV_VAL={path}")
    except ValueError as error:
        assert path.name in str(error)
    else:
        score = task.score({item.id: "A" for item in task.items})
        assert score.n_rows == len(task.fields)


@DAMAGED
@given(st.integers(0, 20), st.data())
def test_damaged_lines_of_own_questions(tmp_path: Path, number: int, data: st.DataObject) -> None:
    lines = [json.dumps(question) for question in QUESTIONS]
    line = lines[number]
    place = data.draw(st.integers(0, len(line) - 1))
    text = data.draw(st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=6))
    cut = data.draw(st.integers(0, len(line)))
    lines[number] = (line[:place] + text + line[place + cut :]) or "{"
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines), "utf-8")
    found = outcome(str(path), len(lines) if lines[number].strip() else len(lines) - 1)
    assert found != "refused" or '"id"' in lines[number]


@pytest.mark.parametrize("value", [None, 3, [], {}, "", "x", [1], {"A": 1}, True, 1e400, "\ud800"])
@pytest.mark.parametrize("key", ["image", "question", "answer", "choices", "metric", "category"])
def test_values_of_another_type(tmp_path: Path, key: str, value: Any) -> None:
    questions = [dict(question) for question in QUESTIONS]
    questions[3][key] = value
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(question) for question in questions), "utf-8")
    outcome(str(path), len(questions))
