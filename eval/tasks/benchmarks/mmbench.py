"""MMBench: single-choice questions, one row per rotation of their options.

A question counts only if the model names the right option in every rotation ("circular"), which
removes luck and letter preference from the score. The file contains the rotated rows: row
g + k * 1,000,000 is question g with its options shifted k times. Liu et al., "MMBench: Is Your
Multi-modal Model an All-around Player?", arXiv 2307.06281, section 4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ..extract import count_failures, extract_choice
from ..files.rows import BenchmarkTable, Findings, Row, find_answer_faults, refuse_rows
from ..prompts import (
    QWEN2,
    SELECT,
    SELECT_CN,
    Content,
    has_chinese,
    images_first,
    question_block,
)
from ..task import (
    Fields,
    TaskScore,
    Unit,
    by_unit,
    choice_fields,
    is_broken,
    percent,
    tabulate_units,
)

METRIC = "circular accuracy"
REQUIRED = ("question", "A", "B", "answer", "category")
ROTATION = 1_000_000  # index distance between rotations of a question


def content(row: Row, style: str) -> Content:
    """Build the user turn: images, then hint, question, options and instruction."""
    text = question_block(row)
    if style == QWEN2:
        return images_first(row, text + (SELECT_CN if has_chinese(text) else SELECT.rstrip()))
    return images_first(row, text + SELECT)


def fields(row: Row) -> Fields:
    """Return the values of a row that scoring and reports need."""
    group = _group(row)
    return {
        "id": str(row.index),
        "unit": group,
        "base": str(row.index) == group,
        "question": row.get("question"),
        "hint": row.get("hint"),
        **choice_fields(row),
    }


def check(table: BenchmarkTable, *, published: bool) -> Findings:
    """Check rows and circular groups.

    Args:
        table: the file.
        published: whether the bytes are those of a known release; inconsistencies inside its
            groups are then notes, because all published scores include them.

    Raises:
        ValueError: rows belong to no question.
    """
    findings = Findings(faults=find_answer_faults(table.rows))
    if not all(isinstance(row.index, int) or row.get("g_index") for row in table.rows):
        raise ValueError(
            f"{table.path.name}: rows are neither numbered nor grouped by a g_index column; "
            "circular evaluation needs one of both"
        )
    groups: dict[str, list[Row]] = {}
    for row in table.rows:
        groups.setdefault(_group(row), []).append(row)
    orphans = [g for g, rows in groups.items() if all(str(r.index) != g for r in rows)]
    refuse_rows(table.path, "are questions without their base row", orphans)
    bad_rows = findings.faults.keys()
    whole = {g: rows for g, rows in groups.items() if not bad_rows & {r.index for r in rows}}
    for fault, bad in _group_faults(whole):
        if bad and published:
            findings.notes.append(
                f"{len(bad)} questions: each {fault}, in the published file itself"
            )
        elif bad:
            rows = (row for g in bad for row in groups[g])
            findings.faults |= {row.index: f"its question {fault}" for row in rows}
    single = [g for g, rows in groups.items() if len(rows) == 1 and len(rows[0].options) > 1]
    if single:
        findings.notes.append(
            f"{len(single)} of {len(groups)} questions stand in the file once, without rotations: "
            "for them circular accuracy is vanilla accuracy"
        )
    return findings


def _group_faults(groups: Mapping[str, Sequence[Row]]) -> Iterable[tuple[str, list[str]]]:
    """Yield each kind of fault with the groups that have it."""
    rolled = {g: rows for g, rows in groups.items() if len(rows) > 1}
    yield (
        "has not one row per option",
        [g for g, rows in rolled.items() if {len(r.options) for r in rows} != {len(rows)}],
    )
    yield (
        "has options that differ between rotations",
        [
            g
            for g, rows in rolled.items()
            if any(Counter(r.options.values()) != Counter(rows[0].options.values()) for r in rows)
        ],
    )
    yield (
        "has a right answer that differs between rotations",
        [g for g, rows in rolled.items() if len({r.options[r["answer"]] for r in rows}) > 1],
    )


def _group(row: Row) -> str:
    if explicit := row.get("g_index"):
        return explicit
    return str(int(row.index) % ROTATION)


def score(items: Sequence[Fields], predictions: Mapping[str, str], profile: str) -> TaskScore:
    """Score circularly: a question is right if all of its rotations in the file are.

    Questions without their base row are not counted, as in the reference implementation; `check`
    refuses files with such questions.

    Args:
        items: fields of all rows, broken ones included.
        predictions: item id -> answer.
        profile: a name in `extract.PROFILES`.
    """
    sound = [item for item in items if not is_broken(item)]
    letters = {
        item["id"]: extract_choice(predictions[item["id"]], item["choices"], profile)
        for item in sound
    }
    hits = {i["id"]: i["id"] in letters and letters[i["id"]] == i["answer"] for i in items}
    units, splits, base_hits = [], [], []
    for unit_id, rows in by_unit(items).items():
        base = next((row for row in rows if row["base"]), None)
        if base is None:
            continue
        units.append(
            Unit(
                id=unit_id,
                correct=all(hits[row["id"]] for row in rows),
                category=base["category"],
                group=base["group"],
                rows=tuple(row["id"] for row in rows),
                answers=tuple(_normalize(row, letters, predictions) for row in rows),
            )
        )
        base_hits.append(hits[base["id"]])
        splits.append(base["split"])
    return TaskScore(
        metric=METRIC,
        units=tuple(units),
        n_rows=len(items),
        broken=len(items) - len(sound),
        **count_failures(letters.values()),
        extra={"vanilla_0": percent(base_hits), "vanilla_all": percent(hits.values())},
        table=tabulate_units(units, splits),
    )


def _normalize(
    item: Fields, letters: Mapping[str, str | None], predictions: Mapping[str, str]
) -> str:
    """Return the text of the chosen option, comparable across rotations; else the answer."""
    if item["id"] not in letters:
        return ""
    letter = letters[item["id"]]
    if letter is not None and letter in item["choices"]:
        return str(item["choices"][letter])
    return predictions[item["id"]].strip()
