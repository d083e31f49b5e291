"""MMMU-Pro, vision form: question and options are in the image, see `mmmu_pro`."""

from __future__ import annotations

from ..files.rows import BenchmarkTable, Findings, Row, find_answer_faults
from ..prompts import Content, images_first
from .mmmu import fields
from .mmmu_pro import DIRECTLY, METRIC, score

__all__ = ["METRIC", "REQUIRED", "check", "content", "fields", "score"]

REQUIRED = ("A", "B", "answer")
IN_IMAGE = "Answer the following multiple-choice question in the image. "


def content(row: Row, style: str) -> Content:
    """Build the user turn: the image, then the task without question and options."""
    return images_first(row, IN_IMAGE + DIRECTLY)


def check(table: BenchmarkTable, *, published: bool) -> Findings:
    """Check that every answer is an option; a question is not needed.

    Args:
        table: the file.
        published: not used; see `mmbench.check`.
    """
    return Findings(faults=find_answer_faults(table.rows, question_needed=False))
