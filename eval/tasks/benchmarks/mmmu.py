"""MMMU: college questions in 30 subjects, some with several images, some without options.

Scored by VLMEvalKit's rules: a question without option A becomes a choice between its gold text (A)
and "Other Answers" (B), then the option rules apply. Their published quirks are kept: an open
question whose gold is the letter C can never be right, and gold "4" matches "14". The score by the
rules of the benchmark's authors is reported in addition, see `matching.mmmu_official`.
Yue et al., "MMMU: A Massive Multi-discipline Multimodal Understanding and Reasoning Benchmark",
arXiv 2311.16502.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..extract import count_failures, extract_choice
from ..files.answer_cells import accepted_answers
from ..files.rows import BenchmarkTable, Findings, Row, find_answer_faults
from ..matching.mmmu_official import official_choice, official_open_hit
from ..prompts import (
    QWEN2,
    SELECT,
    Content,
    find_placeholder_faults,
    images_first,
    interleave,
    question_block,
)
from ..task import (
    Fields,
    TaskScore,
    choice_fields,
    is_broken,
    percent,
    row_answer,
    row_unit,
    tabulate_units,
)

METRIC = "accuracy"
REQUIRED = ("question", "A", "B", "answer", "category")
OTHER = "Other Answers"
_SINGLE_LETTER = re.compile("[A-Z]")


def content(row: Row, style: str) -> Content:
    """Build the user turn: images first (Qwen2-VL) or at their placeholders."""
    text = question_block(row) + (SELECT if row.options else "")
    if style == QWEN2:
        return images_first(row, text.rstrip())
    return interleave(row, text)


def fields(row: Row) -> Fields:
    """Return the values of a row that scoring and reports need."""
    return {
        "id": str(row.index),
        "unit": str(row.index),
        "question": row.get("question"),
        **choice_fields(row),
    }


def check(table: BenchmarkTable, *, published: bool) -> Findings:
    """Check answers, and that placeholders refer to existing images.

    Args:
        table: the file.
        published: not used; see `mmbench.check`.
    """
    faults = find_answer_faults(table.rows, open_allowed=True)
    sound = [row for row in table.rows if row.index not in {**faults, **table.faults}]
    return Findings(faults={**find_placeholder_faults(sound), **faults})


def score(items: Sequence[Fields], predictions: Mapping[str, str], profile: str) -> TaskScore:
    """Score every row once; `extra` has the scores of multiple-choice and of open questions.

    `extra["official"]` is the score of the same answers by the authors' rules.

    Args:
        items: fields of all rows, broken ones included.
        predictions: item id -> answer.
        profile: a name in `extract.PROFILES`.
    """
    units, letters = [], []
    closed: list[bool] = []
    free: list[bool] = []
    official: list[bool] = []
    for item in items:
        answer = row_answer(item, predictions)
        choices, gold = as_choice(item)
        letter = extract_choice(answer, choices, profile)
        letters += [] if is_broken(item) else [letter]
        normalized = letter if letter and item["choices"] else answer.strip()
        unit = row_unit(item, letter == gold, normalized)
        units.append(unit)
        official.append(official_hit(item, answer) and not is_broken(item))
        (closed if item["choices"] else free).append(unit.correct)
    extra = {"multiple_choice": percent(closed)} if closed else {}
    extra |= {"open": percent(free)} if free else {}
    extra["official"] = percent(official)
    return TaskScore(
        metric=METRIC,
        units=tuple(units),
        n_rows=len(items),
        broken=len(items) - len(letters),
        **count_failures(letters),
        extra=extra,
        table=tabulate_units(units, [item["split"] for item in items]),
    )


def as_choice(item: Fields) -> tuple[Mapping[str, str], str]:
    """Return the options and the gold letter for the option rules."""
    choices, gold = item["choices"], str(item["answer"])
    letter = gold if _SINGLE_LETTER.fullmatch(gold) else "A"
    if "A" in choices:
        return choices, letter
    return {**choices, "A": gold, "B": OTHER}, letter


def official_hit(item: Fields, answer: str) -> bool:
    """Whether an answer is right by the authors' rules; wrong where their script would guess."""
    if item["choices"]:
        return official_choice(answer, item["choices"]) == str(item["answer"])
    return official_open_hit(accepted_answers(str(item["answer"])), answer)
