"""Custom benchmarks: questions supplied by the user, see `files.jsonl` for the file formats.

Marks in the question place the images: `<image 1>` is the first image, `<image>` the next one in
order; one question uses one kind of mark. Without marks, images come first.

An answer is right by the metric of its row:

- exact: it equals an accepted answer, ignoring case, outer and repeated blanks and a final full
  stop;
- contains: an accepted answer occurs in it, with the same normalization;
- choice: it names the right option letter;
- relaxed: numbers may differ by 5 %, other answers are exact (Masry et al., "ChartQA", ACL
  Findings 2022, section 5.1).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence

from ..extract import count_failures, extract_choice
from ..files.jsonl import KEYS
from ..files.rows import BenchmarkTable, Findings, Row
from ..matching.choices import fold
from ..prompts import QWEN2, SELECT, Content, image_part, images_first, question_block, text_part
from ..task import (
    Fields,
    TaskScore,
    Unit,
    is_broken,
    percent,
    row_answer,
    row_unit,
    tabulate_units,
)

METRIC = "accuracy"
REQUIRED = ("question", "answer")
TOLERANCE = 0.05  # relative error of a number in "relaxed"
_MARK = re.compile(r"<image(?: (\d{1,9}))?>")


def content(row: Row, style: str) -> Content:
    """Build the user turn: the question verbatim; with choices, in the layout of MMBench.

    Raises:
        ValueError: the marks do not match the images of the row.
    """
    if not row.options:
        return _place_images(row, row["question"])
    text = question_block(row) + SELECT
    return _place_images(row, text.rstrip() if style == QWEN2 else text)


def _place_images(row: Row, text: str) -> Content:
    """Replace the marks of a text by the images."""
    marks = _MARK.findall(text)
    if not marks:
        return images_first(row, text)
    numbers = [int(mark) for mark in marks if mark]
    if not numbers:
        numbers = list(range(1, len(marks) + 1))
        if len(numbers) != len(row.images):
            raise ValueError(f"{len(marks)} marks <image> for {len(row.images)} images")
    if len(numbers) < len(marks):
        raise ValueError("<image> and numbered marks in one question; use one kind")
    if bad := [n for n in numbers if not 1 <= n <= len(row.images)]:
        raise ValueError(f"the mark <image {bad[0]}> is for none of its {len(row.images)} images")
    pieces = _MARK.split(text)[::2]
    content = [text_part(pieces[0])] if pieces[0] else []
    for number, piece in zip(numbers, pieces[1:], strict=True):
        content.append(image_part(row.images[number - 1]))
        content += [text_part(piece)] if piece else []
    return content


def fields(row: Row) -> Fields:
    """Return the values of a row that scoring and reports need."""
    return {
        "id": str(row.index),
        "line": row.line,
        "unit": str(row.index),
        "question": row.get("question"),
        "answers": json.loads(row.get("answers", "[]")),
        "metric": row.get("metric", "exact"),
        "choices": row.options,
        "category": row.get("category", "none"),
        "group": row.l2_category or "none",
    }


def check(table: BenchmarkTable, *, published: bool) -> Findings:
    """Check that marks and images match, and note unread columns; all else is checked in reading.

    Args:
        table: the file.
        published: not used; see `mmbench.check`.
    """
    unread = [column for column in table.columns if column not in KEYS]
    findings = Findings([f"columns that are not read: {', '.join(unread)}"] if unread else [])
    for row in table.rows:
        if row.index not in table.faults:
            try:
                parts = content(row, QWEN2)
            except ValueError as error:
                findings.faults[row.index] = str(error)
                continue
            shown = {id(part["image"]) for part in parts if part["type"] == "image"}
            unseen = [n for n, image in enumerate(row.images, 1) if id(image) not in shown]
            if unseen:
                findings.faults[row.index] = (
                    f"its image {unseen[0]} is never shown; write <image {unseen[0]}> where it "
                    "belongs, or leave it out"
                )
    return findings


def score(items: Sequence[Fields], predictions: Mapping[str, str], profile: str) -> TaskScore:
    """Score every row once by its metric; `extra` has the score per metric if there are several.

    Args:
        items: fields of all rows, broken ones included.
        predictions: item id -> answer.
        profile: a name in `extract.PROFILES`.
    """
    units: list[Unit] = []
    letters: list[str | None] = []
    by_metric: dict[str, list[bool]] = {}
    for item in items:
        answer = row_answer(item, predictions)
        letter = extract_choice(answer, item["choices"], profile) if item["choices"] else answer
        if not is_broken(item) and item["metric"] == "choice":
            letters.append(letter)
        unit = row_unit(item, is_right(item, answer, letter), letter or fold(answer))
        by_metric.setdefault(item["metric"], []).append(unit.correct)
        units.append(unit)
    return TaskScore(
        metric=METRIC,
        units=tuple(units),
        n_rows=len(items),
        broken=sum(map(is_broken, items)),
        **count_failures(letters),
        extra={m: percent(hits) for m, hits in by_metric.items()} if len(by_metric) > 1 else {},
        table=tabulate_units(units, [None] * len(units)),
    )


def is_right(item: Fields, answer: str, letter: str | None) -> bool:
    """Whether an answer is right by the metric of its row.

    Args:
        item: fields of the row.
        answer: the model's answer.
        letter: option letter extracted from it, for the metric "choice".
    """
    if item["metric"] == "choice":
        return letter in item["answers"]
    text, golds = fold(answer), [fold(gold) for gold in item["answers"]]
    if item["metric"] == "contains":
        return any(gold in text for gold in golds)
    if item["metric"] == "relaxed":
        return any(text == gold or _is_near(text, gold) for gold in golds)
    return text in golds


def _is_near(text: str, gold: str) -> bool:
    """Whether two texts are numbers, optionally in percent, within `TOLERANCE`."""
    try:
        value, expected = (float(t.removesuffix("%").replace(",", "")) for t in (text, gold))
    except ValueError:
        return False
    return math.isfinite(value) and abs(value - expected) <= TOLERANCE * abs(expected)
