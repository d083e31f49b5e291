"""Questions of one's own, see `jsonl` for the file.

Images are shown where marks of the question say so: `<image 1>` is the place of the first one,
`<image>` that of the next one, in order (not both in one question). Without marks they come first.

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
import re
from collections.abc import Mapping, Sequence

from .choices import fold
from .extract import REFUSAL, extract_choice
from .files.table import Findings, Row, Table
from .prompts import QWEN2, SELECT, Content, image_part, images_first, question_block, text_part
from .task import Fields, TaskScore, Unit, accuracy_table, is_broken, percent

METRIC = "accuracy"
REQUIRED = ("question", "answer")
TOLERANCE = 0.05  # of the gold number, in "relaxed"
_MARK = re.compile(r"<image(?: (\d{1,9}))?>")


def content(row: Row, style: str) -> Content:
    """The question as it is written; with choices, in the layout of MMBench.

    Raises:
        ValueError: its marks name other images than the row holds.
    """
    if not row.options:
        return _placed(row, row["question"])
    text = question_block(row) + SELECT
    return _placed(row, text.rstrip() if style == QWEN2 else text)


def _placed(row: Row, text: str) -> Content:
    """Put the images where the marks of a text are."""
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
    """What scoring and reports need of a row."""
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


def check(table: Table, *, published: bool) -> Findings:
    """Check that marks and images fit each other; the rest was checked while reading."""
    found = Findings()
    for row in table.rows:
        if row.index not in table.faults:
            try:
                parts = content(row, QWEN2)
            except ValueError as error:
                found.faults[row.index] = str(error)
                continue
            shown = {id(part["image"]) for part in parts if part["type"] == "image"}
            unseen = [n for n, image in enumerate(row.images, 1) if id(image) not in shown]
            if unseen:
                found.faults[row.index] = (
                    f"its image {unseen[0]} is never shown; write <image {unseen[0]}> where it "
                    "belongs, or leave it out"
                )
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
                answers=(letter or fold(said),),
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
    told, golds = fold(said), [fold(answer) for answer in item["answers"]]
    if item["metric"] == "contains":
        return any(gold in told for gold in golds)
    if item["metric"] == "relaxed":
        return any(told == gold or _is_near(told, gold) for gold in golds)
    return told in golds


def _is_near(told: str, gold: str) -> bool:
    """Whether two texts are numbers (maybe both in percent) that differ by little."""
    try:
        value, wanted = (float(text.removesuffix("%").replace(",", "")) for text in (told, gold))
    except ValueError:
        return False
    return math.isfinite(value) and abs(value - wanted) <= TOLERANCE * abs(wanted)
