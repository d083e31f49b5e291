from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eval_files import base64_png, mmbench_rows, mmmu_rows, ocrbench_rows, write_tsv
from PIL import Image

from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.broken import PLACEHOLDERS, mark_broken

Rows = list[dict[str, Any]]
FILES: dict[str, Callable[[], Rows]] = {
    "MMBench_DEV_EN": lambda: mmbench_rows(8),
    "OCRBench": lambda: ocrbench_rows(24),
    "MMMU_DEV_VAL": lambda: [
        {**mmmu_rows()[2], "index": i, "split": "validation"} for i in range(24)
    ],
}


def png(size: tuple[int, int], mode: str = "RGB") -> str:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


WIDE, TALL, BIG = png((1093, 5)), png((2, 500)), png((10_000, 9_500), "1")
ODD = {
    "aspect ratio 218.6": {"image": WIDE},
    "aspect ratio 250": {"image": TALL},
    "10000 x 9500": {"image": BIG},
    "<\\|image_pad\\|>": {"question": "What is <|image_pad|> for?"},
    "<\\|video_pad\\|>": {"question": "What is <|video_pad|> for?"},
}


def own_rows(count: int = 24) -> Rows:
    return [
        {"id": f"q{n}", "image": base64_png(n), "question": f"q {n}?", "answer": "x"}
        for n in range(count)
    ]


def write_jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("reason", sorted(ODD))
def test_rows_of_published_files_that_no_model_can_be_asked(
    tmp_path: Path, name: str, reason: str
) -> None:
    rows = FILES[name]()
    rows[13] |= ODD[reason]
    if name == "MMBench_DEV_EN":
        rows[13] |= {"image": ODD[reason].get("image", base64_png(77))}
    task = open_task(f"{name}={write_tsv(tmp_path / 'a.tsv', rows)}")
    key = str(rows[13]["index"])
    assert task.fingerprint["broken"] == [key] and task.fingerprint["rows"] == len(rows)
    assert [item.id for item in task.items] == [str(r["index"]) for r in rows if r is not rows[13]]
    assert len(task.notes[-1].splitlines()) == 1
    [fault] = [f["fault"] for f in task.fields if "fault" in f]
    assert re.search(reason, fault)
    assert f"({key}: {fault})" in task.notes[-1]
    score = task.score({item.id: "nothing" for item in task.items})
    assert (score.n_rows, score.broken) == (len(rows), 1)


@pytest.mark.parametrize("reason", sorted(ODD))
def test_own_rows_that_no_model_can_be_asked_are_named_with_their_line(
    tmp_path: Path, reason: str
) -> None:
    rows = own_rows()
    rows[13] |= ODD[reason]
    task = open_task(f"x={write_jsonl(tmp_path / 'a.jsonl', rows)}")
    assert task.fingerprint["broken"] == ["q13"] and len(task.items) == 23
    [fault] = [f["fault"] for f in task.fields if "fault" in f]
    assert fault.startswith("line 14: ") and re.search(reason, fault)
    assert "a.jsonl" not in fault and f"(q13: {fault})" in task.notes[-1]
    score = task.score({item.id: "x" for item in task.items})
    assert (score.n_rows, score.broken, score.percent) == (24, 1, 100 * 23 / 24)


@pytest.mark.parametrize("token", PLACEHOLDERS)
@pytest.mark.parametrize("column", ["question", "hint", "A", "B"])
def test_placeholder_tokens_anywhere_in_the_prompt(tmp_path: Path, token: str, column: str) -> None:
    rows = mmbench_rows(8)
    for row in rows:  # an option must be the same in all rotations
        if str(row["index"]).endswith("241"):
            changed = {"question": "question", "hint": "hint"}.get(column)
            for letter in "ABCD":
                is_meant = row[letter] == {"A": "cat", "B": "dog"}.get(column)
                row[letter] = f"a {token}" if is_meant else row[letter]
            row |= {changed: f"{token}?"} if changed else {}
    path = write_tsv(tmp_path / "a.tsv", [*rows, *more_questions()])
    task = open_task(f"MMBench_DEV_EN={path}")
    assert task.fingerprint["broken"] == ["241", "1000241", "2000241", "3000241"]


def more_questions() -> Rows:
    """So many that four broken rows are below 5 %."""
    rows = mmbench_rows(24)
    for row in rows:
        row["index"] = int(str(row["index"])) + 500
        if len(str(row["image"])) <= 64:
            row["image"] = str(int(str(row["image"])) + 500)
    return rows


def test_placeholders_in_options_of_own_questions(tmp_path: Path) -> None:
    rows = own_rows()
    rows[3] = {"question": "q", "choices": ["x", "<|video_pad|>"], "answer": "A", "id": "q3"}
    task = open_task(f"x={write_jsonl(tmp_path / 'a.jsonl', rows)}")
    assert task.fingerprint["broken"] == ["q3"]


def test_tokens_that_are_no_placeholders_are_asked(tmp_path: Path) -> None:
    rows = [{"question": "What are <|im_end|> and <|vision_start|>?", "answer": "x"}]
    assert len(open_task(f"x={write_jsonl(tmp_path / 'a.jsonl', rows)}").items) == 1


def test_half_a_surrogate_pair_cannot_be_asked(tmp_path: Path) -> None:
    rows = own_rows()
    rows[5]["question"] = "\ud83d?"
    task = open_task(f"x={write_jsonl(tmp_path / 'a.jsonl', rows)}")
    assert task.fingerprint["broken"] == ["q5"]
    assert "surrogate" in task.fields[5]["fault"]


def test_a_file_with_many_unusable_rows_is_refused_with_their_lines(tmp_path: Path) -> None:
    rows = own_rows()
    for number in (3, 7):
        rows[number]["image"] = WIDE
    with pytest.raises(ValueError, match=r"a\.jsonl: 2 of 24 rows .*\(q3: line 4: .*; q7: line 8:"):
        open_task(f"x={write_jsonl(tmp_path / 'a.jsonl', rows)}")


def test_notes_are_one_short_line_for_any_row(tmp_path: Path) -> None:
    rows = own_rows(40)
    rows[3] |= {"id": "a\nb", "answer": "\n" + "x" * 9999, "choices": ["left", "right"]}
    task = open_task(f"x={write_jsonl(tmp_path / 'a.jsonl', rows)}")
    [note] = task.notes
    assert "(a b: line 4: answer" in note and len(note.splitlines()) == 1 and len(note) < 400


def test_rows_broken_later_join_those_broken_before(tmp_path: Path) -> None:
    rows = own_rows(60)
    rows[13]["image"] = WIDE
    opened = open_task(f"x={write_jsonl(tmp_path / 'a.jsonl', rows)}")
    task = mark_broken(opened, {"q2": "it is too long", "q13": "another reason"})
    assert task.fingerprint["broken"] == ["q2", "q13"]
    assert task.fingerprint["items"] != opened.fingerprint["items"]
    assert task.fields[2]["fault"] == "line 3: it is too long"
    assert task.fields[13] == opened.fields[13]
    [note] = task.notes
    assert note.startswith(
        "2 of 60 rows are broken and count as wrong (q2: line 3: it is too long;"
    )
    assert mark_broken(task, {"q2": "line 3: it is too long"}) == task
    with pytest.raises(ValueError, match="4 of 60 rows"):
        mark_broken(task, {"q5": "odd", "q6": "odd"})
