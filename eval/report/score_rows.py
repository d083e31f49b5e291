"""Score rows of a benchmark file with predictions of another tool.

A row is a dict with the columns of VLMEvalKit's TSV and a `prediction`. A cell that is None, NaN
or empty counts as missing, and so does an option with such a cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..tasks.benchmarks import mmbench, mmmu
from ..tasks.extract import DEFAULT_PROFILE
from ..tasks.files.rows import Row


def circular_hits(
    rows: Iterable[Mapping[str, Any]], profile: str = DEFAULT_PROFILE
) -> dict[int, int]:
    """Score MMBench rows by circular evaluation (MMBench, arXiv 2307.06281, section 4).

    Args:
        rows: with `index`, `answer`, the options and `prediction`; `g_index` identifies the
            question, or `index` modulo a million without it.
        profile: extraction rules, a name of `extract.PROFILES`.

    Returns:
        For each question whose base row is present: 1 if all its rows are right, else 0.

    Raises:
        ValueError: a row lacks a column, repeats an index, or the profile is unknown.
    """
    items, predictions = [], {}
    for number, row in enumerate(rows):
        cells = _cells(row, number, ("index", "answer", "prediction"))
        item = mmbench.fields(Row(int(cells["index"]), {"question": "", **cells}, ()))
        if item["id"] in predictions:
            raise ValueError(f"row {number} repeats index {item['id']}; each index may occur once")
        items.append(item)
        predictions[item["id"]] = str(row["prediction"])
    score = mmbench.score(items, predictions, profile)
    return {int(unit.id): int(unit.correct) for unit in score.units}


def mmmu_exact_hit(row: Mapping[str, Any], profile: str = DEFAULT_PROFILE) -> bool:
    """Check an MMMU answer by VLMEvalKit's rules without a judge model.

    Args:
        row: with `answer` and `prediction`; without option A the question is open.
        profile: extraction rules, a name of `extract.PROFILES`.

    Raises:
        ValueError: the row lacks a column, or the profile is unknown.
    """
    cells = _cells(row, 0, ("answer", "prediction"))
    item = mmmu.fields(Row(0, {"question": "", **cells}, ()))
    score = mmmu.score([item], {item["id"]: str(row["prediction"])}, profile)
    return score.units[0].correct


def _cells(row: Mapping[str, Any], number: int, required: Iterable[str]) -> dict[str, str]:
    """The cells of a row that are not missing, as text."""
    if missing := [column for column in required if column not in row]:
        raise ValueError(f"row {number} has no {', '.join(missing)}; found {', '.join(row)}")
    return {
        column: str(value)
        for column, value in row.items()
        # NaN is the only value that differs from itself.
        if value is not None and value == value and value != ""
    }
