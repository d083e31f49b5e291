"""MMBench: single-choice questions asked once per rotation of their options.

A question counts only if the model names the right option in every rotation ("circular"), which
takes luck and letter preference out of the score. The rotated rows stand in the file: row
g + k * 1,000,000 asks question g with its options shifted k times. Liu et al., "MMBench: Is Your
Multi-modal Model an All-around Player?", arXiv 2307.06281, section 4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from .extract import REFUSAL, extract_choice
from .files.table import Findings, Row, Table, answer_faults, fail_rows
from .prompts import QWEN2, SELECT, SELECT_CN, Content, has_chinese, images_first, question_block
from .task import Fields, TaskScore, Unit, accuracy_table, by_unit, is_broken, percent

METRIC = "circular accuracy"
REQUIRED = ("question", "A", "B", "answer", "category")
ROTATION = 1_000_000  # index distance between rotations of a question


def content(row: Row, style: str) -> Content:
    """Build the user turn: pictures, then hint, question, options and instruction."""
    text = question_block(row)
    if style == QWEN2:
        return images_first(row, text + (SELECT_CN if has_chinese(text) else SELECT.rstrip()))
    return images_first(row, text + SELECT)


def fields(row: Row) -> Fields:
    """What scoring and reports need of a row."""
    group = _group(row)
    return {
        "id": str(row.index),
        "unit": group,
        "base": str(row.index) == group,
        "question": row.get("question"),
        "hint": row.get("hint"),
        "choices": row.options,
        "answer": row.get("answer"),
        "category": row.get("category", "none"),
        "group": row.l2_category or "none",
        "split": row.get("split"),
    }


def check(table: Table, *, published: bool) -> Findings:
    """Check rows and circular groups.

    Args:
        table: the file.
        published: it is byte for byte a known release; quirks inside its groups are then
            notes, because everybody's scores include them.

    Raises:
        ValueError: rows that belong to no question.
    """
    found = Findings(faults=answer_faults(table.rows))
    if not all(isinstance(row.index, int) or row.get("g_index") for row in table.rows):
        raise ValueError(
            f"{table.path.name}: rows are neither numbered nor grouped by a g_index column; "
            "circular evaluation needs one of both"
        )
    groups: dict[str, list[Row]] = {}
    for row in table.rows:
        groups.setdefault(_group(row), []).append(row)
    orphans = [g for g, rows in groups.items() if all(str(r.index) != g for r in rows)]
    fail_rows(table.path, "are questions without their base row", orphans)
    bad_rows = found.faults.keys()
    whole = {g: rows for g, rows in groups.items() if not bad_rows & {r.index for r in rows}}
    for what, bad in _group_faults(whole):
        if bad and published:
            found.notes.append(f"{len(bad)} questions: each {what}, in the published file itself")
        elif bad:
            found.faults |= {row.index: f"its question {what}" for g in bad for row in groups[g]}
    single = [g for g, rows in groups.items() if len(rows) == 1 and len(rows[0].options) > 1]
    if single:
        found.notes.append(
            f"{len(single)} of {len(groups)} questions stand in the file once, without rotations: "
            "for them circular accuracy is vanilla accuracy"
        )
    return found


def _group_faults(groups: Mapping[str, Sequence[Row]]) -> Iterable[tuple[str, list[str]]]:
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
    """Score circularly: a question is right when every present rotation is.

    Questions whose base row is absent are not counted, as in the reference; `check` refuses
    files with such questions.
    """
    asked = [item for item in items if not is_broken(item)]
    letters = {
        item["id"]: extract_choice(predictions[item["id"]], item["choices"], profile)
        for item in asked
    }
    hits = {i["id"]: i["id"] in letters and letters[i["id"]] == i["answer"] for i in items}
    units, table_rows, base_hits = [], [], []
    for unit_id, rows in by_unit(items).items():
        base = next((row for row in rows if row["base"]), None)
        if base is None:
            continue
        unit = Unit(
            id=unit_id,
            correct=all(hits[row["id"]] for row in rows),
            category=base["category"],
            group=base["group"],
            rows=tuple(row["id"] for row in rows),
            answers=tuple(_said(row, letters, predictions) for row in rows),
        )
        units.append(unit)
        base_hits.append(hits[base["id"]])
        table_rows.append(
            {
                "hit": int(unit.correct),
                "split": base["split"],
                "l2-category": base["group"],
                "category": base["category"],
            }
        )
    return TaskScore(
        metric=METRIC,
        units=tuple(units),
        n_rows=len(items),
        broken=len(items) - len(asked),
        parse_failures=sum(letter is None for letter in letters.values()),
        refusals=sum(letter == REFUSAL for letter in letters.values()),
        extra={"vanilla_0": percent(base_hits), "vanilla_all": percent(hits.values())},
        table=accuracy_table(table_rows),
    )


def _said(item: Fields, letters: Mapping[str, str | None], predictions: Mapping[str, str]) -> str:
    """The option's text, so that rotations and models compare; else the answer itself."""
    if item["id"] not in letters:
        return ""
    letter = letters[item["id"]]
    if letter is not None and letter in item["choices"]:
        return str(item["choices"][letter])
    return predictions[item["id"]].strip()
