"""OCRBench v2: thirty kinds of tasks with text in images, each with a metric of its own.

Task types whose metric needs METEOR, and with it the WordNet data, are not scored: their rows are
left out of the evaluation and counted in its notes (`left_out`). Fu et al., "OCRBench v2", arXiv
2501.00321; the metrics are in `matching.ocrbench_v2`.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any

from ..files.rows import BenchmarkTable, Findings, Row
from ..matching.ocrbench_v2.documents import document_score
from ..matching.ocrbench_v2.pairs import answer_with_box_score, box_score, pairs_score
from ..matching.ocrbench_v2.spotting import spotting_score
from ..matching.ocrbench_v2.tables import chart_score, html_table_score, markdown_table_score
from ..matching.ocrbench_v2.texts import (
    case_sensitive_score,
    chinese_formula_score,
    chinese_score,
    choices_score,
    count_score,
    exact_count_score,
    formula_score,
    letter_score,
    text_score,
)
from ..task import Fields, TaskScore, Unit, is_broken, percent, row_answer, row_unit
from .ocrbench import content

__all__ = ["METRIC", "REQUIRED", "check", "content", "fields", "left_out", "score"]

METRIC = "OCRBench v2 score"
REQUIRED = ("question", "answer", "category", "eval", "bbox", "content")
Scorer = Callable[[list[Any], str], float]
_ABSENT = "without "  # begins the cells of `eval`, `bbox` and `content` that have no value
_SHORT_ANSWER = "简答"  # in questions whose answers are compared by METEOR


@dataclass(frozen=True)
class TaskType:
    """A task type: its group in the results table, and its metric."""

    group: str
    scorer: Scorer | None
    """None: the metric is chosen by the row, see `_find_scorer`, or not offered."""
    evals: Mapping[str, Scorer]
    """Metrics by the column `eval`."""


def _type(group: str, scorer: Scorer | None = None, **evals: Scorer) -> TaskType:
    return TaskType(group, scorer, {key.replace("_", " "): each for key, each in evals.items()})


def _text(group: str, scorer: Scorer = text_score) -> TaskType:
    return _type(group, scorer, multiple_choice=letter_score, case_sensitive=case_sensitive_score)


TYPES: Mapping[str, TaskType] = {
    "text recognition en": _text("en_text_recognition"),
    "fine-grained text recognition en": _type("en_text_recognition"),
    "full-page OCR en": _type("en_text_recognition"),
    "text grounding en": _type("en_text_detection", box_score),
    "VQA with position en": _type("en_text_detection"),
    "text spotting en": _type("en_text_spotting"),
    "key information extraction en": _type("en_relationship_extraction", pairs_score),
    "key information mapping en": _type("en_relationship_extraction", pairs_score),
    "document parsing en": _type("en_element_parsing", document_score),
    "chart parsing en": _type("en_element_parsing", chart_score),
    "table parsing en": _type("en_element_parsing"),
    "formula recognition en": _type("en_element_parsing", formula_score),
    "math QA en": _text("en_mathematical_calculation"),
    "text counting en": _type(
        "en_mathematical_calculation", exact_match=exact_count_score, regression=count_score
    ),
    "document classification en": _text("en_visual_text_understanding"),
    "cognition VQA en": _text("en_visual_text_understanding"),
    "diagram QA en": _text("en_visual_text_understanding"),
    "reasoning VQA en": _text("en_knowledge_reasoning"),
    "science QA en": _text("en_knowledge_reasoning"),
    "APP agent en": _text("en_knowledge_reasoning"),
    "ASCII art classification en": _text("en_knowledge_reasoning"),
    "full-page OCR cn": _type("cn_text_recognition"),
    "key information extraction cn": _type("cn_relationship_extraction", pairs_score),
    "handwritten answer extraction cn": _type("cn_relationship_extraction"),
    "document parsing cn": _type("cn_element_parsing", document_score),
    "table parsing cn": _type("cn_element_parsing", html_table_score),
    "formula recognition cn": _type("cn_element_parsing", chinese_formula_score),
    "cognition VQA cn": _text("cn_visual_text_understanding", chinese_score),
    "reasoning VQA cn": _text("cn_knowledge_reasoning", chinese_score),
    "text translation cn": _type("cn_knowledge_reasoning"),
}
LEFT_OUT = (
    "full-page OCR en",
    "full-page OCR cn",
    "fine-grained text recognition en",
    "text translation cn",
)
"""Types of which no row is scored."""


def left_out(row: Row) -> str:
    """Return the task type of a row that is not scored, empty for others."""
    category = row.get("category")
    if category in LEFT_OUT:
        return category
    if category == "handwritten answer extraction cn" and _SHORT_ANSWER in row.get("question"):
        return f"{category} ({_SHORT_ANSWER})"
    return ""


def fields(row: Row) -> Fields:
    """Return the values of a row that scoring and reports need."""
    category = row.get("category", "none")
    answers = _literal(row.get("answer"))
    return {
        "id": str(row.index),
        "unit": str(row.index),
        "question": row.get("question"),
        "answers": answers if isinstance(answers, list) else [answers],
        "eval": _literal(row.get("eval")),
        "bbox": _literal(row.get("bbox")),
        "content": _literal(row.get("content")),
        "category": category,
        "group": TYPES[category].group if category in TYPES else "none",
    }


def _literal(cell: str) -> Any:
    """Return the value of a literal, the text of any other cell, and None without a value."""
    if not cell or cell.startswith(_ABSENT):
        return None
    try:
        return ast.literal_eval(cell)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return cell


def _find_scorer(item: Fields) -> Scorer:
    """Return the metric of a row.

    Raises:
        ValueError: the row has no metric.
    """
    category, question = item["category"], item["question"].lower()
    if category not in TYPES:
        raise ValueError(f"OCRBench v2 has no category {category[:40]!r}")
    task_type = TYPES[category]
    if item["eval"] in task_type.evals:
        return task_type.evals[item["eval"]]
    if category == "text counting en" or (task_type.evals and item["eval"] is not None):
        allowed = ", ".join(task_type.evals)
        raise ValueError(f"its eval is {item['eval']!r}; {category} has {allowed}")
    if category == "VQA with position en":
        return lambda answers, text: answer_with_box_score(answers, item["bbox"], text)
    if category == "text spotting en":
        return lambda answers, text: spotting_score(item["bbox"], item["content"], text)
    if category == "handwritten answer extraction cn":
        return choices_score
    if category == "table parsing en":
        for word, scorer in (("html", html_table_score), ("markdown", markdown_table_score)):
            if word in question:
                return scorer
        raise ValueError("its question names neither HTML nor Markdown")
    if task_type.scorer is None:
        raise ValueError(f"{category} is not scored")
    return task_type.scorer


def check(table: BenchmarkTable, *, published: bool) -> Findings:
    """Check that every row can be scored.

    Args:
        table: the file.
        published: not used; see `mmbench.check`.
    """
    findings = Findings()
    for row in table.rows:
        if left_out(row):
            continue
        missing = [column for column in ("question", "answer") if column not in row.values]
        try:
            if missing:
                raise ValueError(f"it has no {missing[0]}")
            item = fields(row)
            _find_scorer(item)(item["answers"], "1")
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            findings.faults[row.index] = f"it cannot be scored: {error}"
    return findings


def score(items: Sequence[Fields], predictions: Mapping[str, str], profile: str) -> TaskScore:
    """Score each row by the metric of its task type; one of 0 is wrong, any other right.

    `extra` has the means over the groups of the English and of the Chinese tasks.

    Args:
        items: fields of all rows, broken ones included.
        predictions: item id -> answer.
        profile: not used; there are no options to extract.
    """
    units = []
    for item in items:
        answer = row_answer(item, predictions)
        value = 0.0 if is_broken(item) else _score_row(_Frozen(item), answer)
        units.append(row_unit(item, value > 0, " ".join(answer.lower().split()), points=value))
    table = _group_table(units)
    return TaskScore(
        metric=METRIC,
        units=tuple(units),
        n_rows=len(items),
        broken=sum(map(is_broken, items)),
        parse_failures=0,
        refusals=0,
        extra={
            name: 100 * table[f"{name} Overall Score"]
            for name in ("English", "Chinese")
            if f"{name} Overall Score" in table
        }
        | {"partly right": percent(unit.correct for unit in units)},
        table=table,
    )


class _Frozen:
    """Fields of a row that can be hashed: the same object, or an equal one."""

    def __init__(self, item: Fields) -> None:
        self.item = item
        self._key = repr(
            [item[key] for key in ("category", "question", "answers", "eval", "bbox", "content")]
        )

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frozen) and self._key == other._key


@lru_cache(maxsize=1 << 15)
def _score_row(row: _Frozen, answer: str) -> float:
    """Score an answer; large tables take seconds, and reports score several times."""
    return _find_scorer(row.item)(row.item["answers"], answer)


def _group_table(units: Sequence[Unit]) -> dict[str, float]:
    """Return the mean of each group, and the means over the English and the Chinese groups."""
    values: dict[str, list[float]] = defaultdict(list)
    for unit in units:
        values[unit.group].append(unit.value)
    table = {group: fmean(values[group]) for group in sorted(values)}
    for name, prefix in (("English", "en_"), ("Chinese", "cn_")):
        if means := [mean for group, mean in table.items() if group.startswith(prefix)]:
            table[f"{name} Overall Score"] = fmean(means)
    return table
