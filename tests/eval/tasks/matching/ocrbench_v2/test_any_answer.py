"""Whatever a model answers, each task type has a score in [0, 1], in a short time."""

from __future__ import annotations

import time
from typing import Any

import pytest
from eval_files import benchmark_vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from vlpress.eval.tasks.benchmarks.ocrbench_v2 import LEFT_OUT, TYPES, fields, score
from vlpress.eval.tasks.files.rows import Row

FILLERS = (" ", "\n", "(", "[", "{", "<b>", "<td>", "<table><tr>", "9", "a b ", "# ", '"', "```")
WORDS = (
    *FILLERS,
    "<![x",
    "</",
    "<!--",
    "&#",
    "<td colspan=",
    "1e999",
    "bbox",
    "answer",
    "\\",
    "'",
    ":",
    ",",
    "=",
    "|",
    "]",
    "}",
    ")",
    "\x00",
    "\ud800",
    "-",
    "None",
)


def items() -> list[dict[str, Any]]:
    """One row of each task type."""
    rows = {}
    for case in benchmark_vectors("ocrbench_v2"):
        values = {key: str(case[key]) for key in ("question", "eval", "bbox", "content")}
        values |= {"answer": str(case["answers"]), "category": case["type"]}
        rows[case["type"], case["eval"], case["question"]] = fields(Row(0, values, ()))
    return [dict(row) for row in rows.values()]


ITEMS = items()


def value(item: dict[str, Any], answer: str) -> float:
    return score([item], {"0": answer}, "").percent / 100


def test_all_task_types_are_tried() -> None:
    assert len(ITEMS) > len(TYPES) - len(LEFT_OUT) - 6


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(WORDS), max_size=12).map("".join), st.sampled_from(ITEMS))
def test_damaged_answers_have_a_score(answer: str, item: dict[str, Any]) -> None:
    assert 0 <= value(item, answer) <= 1


@pytest.mark.parametrize("filler", FILLERS)
def test_answers_that_repeat_themselves_are_scored_in_time(filler: str) -> None:
    begin = time.process_time()
    for item in ITEMS:
        for answer in (
            filler * 1500,
            f"<table>{filler * 500}</table>",
            f"| {filler * 500} |\n|-|\n||",
        ):
            assert 0 <= value(item, answer) <= 1
    assert time.process_time() - begin < 20  # less than two seconds each
