"""TextVQA: questions that need the text in an image, scored by VQA accuracy.

Ten people answered each question (`matching.vqa_accuracy`). The prompt has no OCR tokens of the
data set. Singh et al., "Towards VQA Models That Can Read", CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..files.answer_cells import accepted_answers
from ..files.rows import BenchmarkTable, Findings
from ..matching.vqa_accuracy import normalize, vqa_accuracy
from ..task import Fields, TaskScore, percent
from .short_answers import REQUIRED, content, fields, score_answers
from .short_answers import check as check_cells

__all__ = ["METRIC", "REQUIRED", "check", "content", "fields", "score"]

METRIC = "VQA accuracy"


def check(table: BenchmarkTable, *, published: bool) -> Findings:
    """Check that every row has a question and the answers of at least two people.

    Args:
        table: the file.
        published: not used; see `mmbench.check`.
    """
    findings = check_cells(table, published=published)
    for row in table.rows:
        if row.index not in findings.faults and len(accepted_answers(row["answer"])) < 2:
            findings.faults[row.index] = "it has the answer of one person; two or more are needed"
    return findings


def score(items: Sequence[Fields], predictions: Mapping[str, str], profile: str) -> TaskScore:
    """Score by VQA accuracy; an answer that no person gave counts as wrong, others as right.

    Args:
        items: fields of all rows, broken ones included.
        predictions: item id -> answer.
        profile: not used; there are no options to extract.
    """
    return score_answers(
        items,
        predictions,
        metric=METRIC,
        points=vqa_accuracy,
        normalize=normalize,
        extra=lambda units: {"given": percent(unit.correct for unit in units)},
    )
