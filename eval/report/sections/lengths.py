"""Lengths of reasonings and answers in tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from ...answering.predictions import Prediction


def summarize_reasoning(answers: Sequence[Prediction]) -> dict[str, float | None] | None:
    """Count the answers with a reasoning, and its tokens; None if no answer has one.

    Returns:
        `answers`, `unfinished` (reasonings without an end), and `mean_tokens` and `p95_tokens` of
        a reasoning, unfinished ones included (95 % have at most `p95_tokens`); None if a server
        does not report the tokens of all of them.
    """
    with_reasoning = [answer for answer in answers if answer.reasoning is not None]
    if not with_reasoning:
        return None
    tokens = [answer.reasoning_tokens for answer in with_reasoning]
    known = sorted(count for count in tokens if count is not None)
    p95 = known[math.ceil(0.95 * len(known)) - 1] if len(known) == len(tokens) else None
    return {
        "answers": len(with_reasoning),
        "unfinished": sum(bool(answer.is_unfinished) for answer in with_reasoning),
        "mean_tokens": fmean(known) if len(known) == len(tokens) else None,
        "p95_tokens": p95,
    }
