"""MMMU-Pro, standard form: questions of MMMU with up to ten options and without guessable ones.

Scored by VLMEvalKit's rules for options; `official` is the score by the rules of the benchmark's
authors (`matching.mmmu_pro_official`). Both prompt styles have the same layout, that of
VLMEvalKit's class. Yue et al., "MMMU-Pro: A More Robust Multi-discipline Multimodal Understanding
Benchmark", arXiv 2409.02813.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..extract import count_failures, extract_choice
from ..files.rows import BenchmarkTable, Findings, Row, find_answer_faults
from ..matching.mmmu_pro_official import official_pro_choice
from ..prompts import Content, find_placeholder_faults, interleave, question_block
from ..task import Fields, TaskScore, is_broken, percent, row_answer, row_unit, tabulate_units
from .mmmu import fields

__all__ = ["METRIC", "REQUIRED", "check", "content", "fields", "score"]

METRIC = "accuracy"
REQUIRED = ("question", "A", "B", "answer")
DIRECTLY = "Answer directly with the option letter from the given choices. "


def content(row: Row, style: str) -> Content:
    """Build the user turn, with images at their placeholders."""
    return interleave(row, question_block(row) + DIRECTLY)


def check(table: BenchmarkTable, *, published: bool) -> Findings:
    """Check answers, and that placeholders refer to existing images.

    Args:
        table: the file.
        published: not used; see `mmbench.check`.
    """
    faults = find_answer_faults(table.rows)
    sound = [row for row in table.rows if row.index not in {**faults, **table.faults}]
    return Findings(faults={**find_placeholder_faults(sound), **faults})


def score(items: Sequence[Fields], predictions: Mapping[str, str], profile: str) -> TaskScore:
    """Score every row once; `extra["official"]` is the score by the authors' rules.

    Args:
        items: fields of all rows, broken ones included.
        predictions: item id -> answer.
        profile: a name in `extract.PROFILES`.
    """
    units, letters, official = [], [], []
    for item in items:
        answer = row_answer(item, predictions)
        letter = extract_choice(answer, item["choices"], profile)
        letters += [] if is_broken(item) else [letter]
        units.append(row_unit(item, letter == item["answer"], letter or answer.strip()))
        named = official_pro_choice(answer, item["choices"])
        official.append(named == item["answer"] and not is_broken(item))
    return TaskScore(
        metric=METRIC,
        units=tuple(units),
        n_rows=len(items),
        broken=len(items) - len(letters),
        **count_failures(letters),
        extra={"official": percent(official)},
        table=tabulate_units(units, [item["split"] for item in items]),
    )
