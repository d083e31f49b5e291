from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from eval_files import base64_png
from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval import extract_choice
from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.benchmarks import custom
from vlpress.eval.tasks.files.jsonl import METRICS, read_questions
from vlpress.eval.tasks.prompts import DEFAULT, QWEN2

CAT = {"image": base64_png(1), "question": "What is this?", "answer": "a cat"}


def write(path: Path, *records: Any) -> Path:
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def hit(said: str, **record: Any) -> bool:
    item = {"metric": "exact", "choices": {}, "answers": [], **record}
    letter = extract_choice(said, item["choices"]) if item["choices"] else said
    return custom.is_right(item, said, letter)


def test_a_file_of_own_questions_is_a_benchmark(tmp_path: Path) -> None:
    (tmp_path / "two.png").write_bytes(base64.b64decode(base64_png(2)))
    sizes = {
        "images": ["two.png", "data:image/png;base64," + base64_png(3)],
        "question": "Is <image 2> larger than <image 1>?",
        "choices": ["yes", "no"],
        "answer": "B",
        "category": "size",
        "id": "sizes-1",
    }
    sums = {"question": "2+2?", "answer": [4, "four"]}
    path = write(tmp_path / "mine.jsonl", CAT, "", sizes, sums)
    task = open_task(f"mine={path}")
    assert (task.name, task.kind, task.synthetic) == ("mine", "own", False)
    assert [item.id for item in task.items] == ["1", "sizes-1", "4"]
    kinds = [[p["type"] for p in item.messages[0]["content"]] for item in task.items]
    assert kinds == [["image", "text"], ["text", "image", "text", "image", "text"], ["text"]]
    score = task.score({"1": "A  Cat.", "sizes-1": "B", "4": "5"})
    assert [unit.correct for unit in score.units] == [True, True, False]
    assert score.extra == {"exact": 50.0, "choice": 100.0}
    assert open_task(str(path)).name == "mine"


def test_an_image_file_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {**CAT, "image": "x.png"})
    (tmp_path / "x.png").write_bytes(base64.b64decode(base64_png(1)))
    before = open_task(str(path)).fingerprint
    (tmp_path / "x.png").write_bytes(base64.b64decode(base64_png(2)))
    assert open_task(str(path)).fingerprint != before


def test_choices_are_asked_in_the_layout_of_the_style(tmp_path: Path) -> None:
    record = {"question": "q", "choices": {"A": "x", "B": "y"}, "answer": "A"}
    (row,) = read_questions(write(tmp_path / "a.jsonl", record)).rows
    [text] = custom.content(row, DEFAULT)
    assert text["text"].startswith("Question: q\nOptions:\nA. x\nB. y\n")
    assert text["text"].endswith("options above. \n")
    assert custom.content(row, QWEN2)[0]["text"].endswith("options above.")


@pytest.mark.parametrize(
    ("said", "record", "right"),
    [
        ("A cat.", {"answers": ["a  cat"]}, True),
        ("the cat", {"answers": ["a cat"]}, False),
        ("", {"answers": ["."]}, False),
        ("It is a Cat, I think", {"answers": ["dog", "cat"], "metric": "contains"}, True),
        ("104.9", {"answers": ["100"], "metric": "relaxed"}, True),
        ("105.1", {"answers": ["100"], "metric": "relaxed"}, False),
        ("1,049 %", {"answers": ["1,000%"], "metric": "relaxed"}, True),
        ("1,049%", {"answers": ["1,000%"], "metric": "relaxed"}, True),
        ("nan", {"answers": ["100"], "metric": "relaxed"}, False),
        ("Paris", {"answers": ["paris"], "metric": "relaxed"}, True),
        ("(B)", {"answers": ["B"], "choices": {"A": "x", "B": "y"}, "metric": "choice"}, True),
        ("x", {"answers": ["B"], "choices": {"A": "x", "B": "y"}, "metric": "choice"}, False),
    ],
)
def test_metrics(said: str, record: dict[str, Any], right: bool) -> None:
    assert hit(said, **record) is right


@given(st.floats(0.01, 1e6), st.floats(-0.2, 0.2))
def test_relaxed_numbers_may_be_five_percent_off(gold: float, off: float) -> None:
    if abs(abs(off) - custom.TOLERANCE) > 1e-6:
        near = abs(off) < custom.TOLERANCE
        record = {"answers": [repr(gold)], "metric": "relaxed"}
        assert hit(repr(gold * (1 + off)), **record) is near


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", r"line 1: not JSON \(Expecting property name"),
        ("[1]", "line 1: holds a list, not an object"),
        ({"answer": "x"}, "line 1: question must be a text"),
        ({"question": "q"}, "line 1: answer is null; it must be a text, a finite number or a list"),
        ({"question": "q", "answer": []}, r"line 1: answer is \[\]"),
        ({"question": "q", "answer": True}, "line 1: answer is true"),
        ({"question": "q", "answer": "x", "metric": "f1"}, "metric is 'f1'; choose one of exact"),
        ({"question": "q", "answer": "C", "choices": ["x", "y"]}, "line 1: answer 'C' is none"),
        ({"question": "q", "answer": "A", "choices": "xy"}, "choices must be a list of texts"),
        ({"question": "q", "answer": "x", "img": "a.png"}, "unknown key 'img'; allowed are id"),
        ({**CAT, "image": "none.png"}, "line 1: image 'none.png'"),
        ({**CAT, "image": 3}, "line 1: image 3; allowed"),
        ({**CAT, "question": "<image 3>?"}, "line 1: the mark <image 3>"),
        ({**CAT, "image": base64.b64encode(b"no image here").decode()}, "line 1: .*not decode"),
    ],
)
def test_unusable_lines_are_broken_rows(tmp_path: Path, line: Any, fault: str) -> None:
    task = open_task(str(write(tmp_path / "a.jsonl", line, CAT)))
    assert [item.id for item in task.items] == ["2"]
    [note] = task.notes
    assert note.startswith("1 of 2 rows are broken and count as wrong (1: ")
    assert re.search(fault, note)
    assert task.score({"2": "a cat"}).percent == 50.0


def test_unusable_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.jsonl:2 .*'7'"):
        read_questions(write(tmp_path / "a.jsonl", {**CAT, "id": 7}, {**CAT, "id": "7"}))
    with pytest.raises(ValueError, match=r"a\.jsonl"):
        read_questions(write(tmp_path / "a.jsonl", ""))
    with pytest.raises(ValueError, match=r"3 of 3 rows .*5%"):
        open_task(str(write(tmp_path / "a.jsonl", "{", "[", "3")))
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        open_task(f"mine={tmp_path / 'none.jsonl'}")
    path = write(tmp_path / "a.jsonl", CAT)
    with pytest.raises(ValueError, match="OCRBench is a published"):
        open_task(f"OCRBench={path}")


def test_every_metric_is_documented() -> None:
    assert all(f"- {metric}:" in (custom.__doc__ or "") for metric in METRICS)
