"""Questions of one's own, see `jsonl` for the file.

An answer is right by the metric of its row:

- exact: it equals an accepted one, but for case, outer and repeated blanks and a final full stop;
- contains: an accepted one occurs in it, blanks and case as above;
- choice: it names the right option letter;
- relaxed: numbers may differ by 5 %, other answers are exact (Masry et al., "ChartQA", ACL
  Findings 2022, section 5.1).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from ..extract import REFUSAL, extract_choice
from .prompts import QWEN2, SELECT, Content, interleave, question_block
from .table import Findings, Row, Table
from .task import Fields, TaskScore, Unit, accuracy_table, is_broken, percent

METRIC = "accuracy"
REQUIRED = ("question", "answer")
TOLERANCE = 0.05  # of the gold number, in "relaxed"


def content(row: Row, style: str) -> Content:
    """The question as it is written; with choices, in the layout of MMBench."""
    if not row.options:
        return interleave(row, row["question"])
    text = question_block(row) + SELECT
    return interleave(row, text.rstrip() if style == QWEN2 else text)


def fields(row: Row) -> Fields:
    """What scoring and reports need of a row."""
    return {
        "id": str(row.index),
        "unit": str(row.index),
        "question": row.get("question"),
        "answers": json.loads(row.get("answers", "[]")),
        "metric": row.get("metric", "exact"),
        "choices": row.options,
        "category": row.get("category", "none"),
        "group": row.l2_category or "none",
    }


def check(table: Table, *, published: bool) -> Findings:
    """Check that placeholders name pictures the row holds; the rest was checked while reading."""
    found = Findings()
    for row in table.rows:
        if row.index not in table.faults:
            try:
                content(row, QWEN2)
            except ValueError as error:
                found.faults[row.index] = str(error)
    return found


def score(items: Sequence[Fields], predictions: Mapping[str, str], profile: str) -> TaskScore:
    """Score every row once by its own metric; each metric also apart, in `extra`."""
    units: list[Unit] = []
    letters: list[str | None] = []
    by_metric: dict[str, list[bool]] = {}
    for item in items:
        said = "" if is_broken(item) else predictions[item["id"]]
        letter = extract_choice(said, item["choices"], profile) if item["choices"] else said
        if not is_broken(item) and item["metric"] == "choice":
            letters.append(letter)
        hit = not is_broken(item) and is_right(item, said, letter)
        by_metric.setdefault(item["metric"], []).append(hit)
        units.append(
            Unit(
                id=item["unit"],
                correct=hit,
                category=item["category"],
                group=item["group"],
                rows=(item["id"],),
                answers=(letter or _fold(said),),
            )
        )
    rows = [{"hit": int(u.correct), "l2-category": u.group, "category": u.category} for u in units]
    return TaskScore(
        metric=METRIC,
        units=tuple(units),
        n_rows=len(items),
        broken=sum(map(is_broken, items)),
        parse_failures=sum(letter is None for letter in letters),
        refusals=sum(letter == REFUSAL for letter in letters),
        extra={m: percent(hits) for m, hits in by_metric.items()} if len(by_metric) > 1 else {},
        table=accuracy_table(rows),
    )


def is_right(item: Fields, said: str, letter: str | None) -> bool:
    """Whether an answer is right by the row's metric."""
    if item["metric"] == "choice":
        return letter in item["answers"]
    told, golds = _fold(said), [_fold(answer) for answer in item["answers"]]
    if item["metric"] == "contains":
        return any(gold in told for gold in golds)
    if item["metric"] == "relaxed":
        return any(told == gold or _is_near(told, gold) for gold in golds)
    return told in golds


def _fold(text: str) -> str:
    folded = " ".join(text.casefold().split())
    return folded.removesuffix(".").rstrip() or folded


def _is_near(told: str, gold: str) -> bool:
    """Whether two texts are numbers (maybe both in percent) that differ by little."""
    try:
        value, wanted = (float(text.removesuffix("%").replace(",", "")) for text in (told, gold))
    except ValueError:
        return False
    return math.isfinite(value) and abs(value - wanted) <= TOLERANCE * abs(wanted)
