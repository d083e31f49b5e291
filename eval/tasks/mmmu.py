"""MMMU: college questions in 30 subjects, some over several pictures, some without options.

Scored by VLMEvalKit's rules: a question without option A becomes one between its gold text (A)
and "Other Answers" (B), then the option rules apply. Their published quirks come along: an open
question whose gold is the letter C can never be right, and gold "4" is found in "14". What the
rules of the benchmark's own authors give for the same answers stands beside it, see
`mmmu_official`.
Yue et al., "MMMU: A Massive Multi-discipline Multimodal Understanding and Reasoning Benchmark",
arXiv 2311.16502.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .extract import REFUSAL, extract_choice
from .files.answer_cells import accepted_answers
from .files.table import Findings, Row, Table, answer_faults
from .mmmu_official import official_choice, official_open_hit
from .prompts import QWEN2, SELECT, Content, images_first, interleave, question_block
from .task import Fields, TaskScore, Unit, accuracy_table, is_broken, percent

METRIC = "accuracy"
REQUIRED = ("question", "A", "B", "answer", "category")
OTHER = "Other Answers"
_SINGLE_LETTER = re.compile("[A-Z]")


def content(row: Row, style: str) -> Content:
    """Build the user turn: pictures first (Qwen2-VL) or where their placeholders stand."""
    text = question_block(row) + (SELECT if row.options else "")
    if style == QWEN2:
        return images_first(row, text.rstrip())
    return interleave(row, text)


def fields(row: Row) -> Fields:
    """What scoring and reports need of a row."""
    return {
        "id": str(row.index),
        "unit": str(row.index),
        "question": row.get("question"),
        "choices": row.options,
        "answer": row.get("answer"),
        "category": row.get("category", "none"),
        "group": row.l2_category or "none",
        "split": row.get("split"),
    }


def check(table: Table, *, published: bool) -> Findings:
    """Check answers, and that placeholders name pictures the row holds."""
    found = Findings(faults=answer_faults(table.rows, open_allowed=True))
    for row in table.rows:
        if row.index not in found.faults and row.index not in table.faults:
            try:
                interleave(row, question_block(row))
            except ValueError as error:
                found.faults[row.index] = str(error)
    return found


def score(items: Sequence[Fields], predictions: Mapping[str, str], profile: str) -> TaskScore:
    """Score every row once; multiple-choice and open questions also apart, in `extra`.

    `extra["official"]` is the score of the same answers by the authors' rules.
    """
    units, table_rows, letters = [], [], []
    closed: list[bool] = []
    free: list[bool] = []
    official: list[bool] = []
    for item in items:
        broken = is_broken(item)
        said = "" if broken else predictions[item["id"]]
        choices, gold = as_choice(item)
        letter = extract_choice(said, choices, profile)
        letters += [] if broken else [letter]
        hit = letter == gold and not broken
        official.append(official_hit(item, said) and not broken)
        (closed if item["choices"] else free).append(hit)
        units.append(
            Unit(
                id=item["unit"],
                correct=hit,
                category=item["category"],
                group=item["group"],
                rows=(item["id"],),
                answers=(letter if letter and item["choices"] else said.strip(),),
            )
        )
        table_rows.append(
            {
                "hit": int(hit),
                "split": item["split"],
                "l2-category": item["group"],
                "category": item["category"],
            }
        )
    extra = {"multiple_choice": percent(closed)} if closed else {}
    extra |= {"open": percent(free)} if free else {}
    extra["official"] = percent(official)
    return TaskScore(
        metric=METRIC,
        units=tuple(units),
        n_rows=len(items),
        broken=len(items) - len(letters),
        parse_failures=sum(letter is None for letter in letters),
        refusals=sum(letter == REFUSAL for letter in letters),
        extra=extra,
        table=accuracy_table(table_rows),
    )


def as_choice(item: Fields) -> tuple[Mapping[str, str], str]:
    """The options and the gold letter that the rules are applied to."""
    choices, gold = item["choices"], str(item["answer"])
    letter = gold if _SINGLE_LETTER.fullmatch(gold) else "A"
    if "A" in choices:
        return choices, letter
    return {**choices, "A": gold, "B": OTHER}, letter


def official_hit(item: Fields, said: str) -> bool:
    """Whether an answer is right by the authors' rules; an answer they would guess for is wrong."""
    if item["choices"]:
        return official_choice(said, item["choices"]) == str(item["answer"])
    return official_open_hit(accepted_answers(str(item["answer"])), said)
