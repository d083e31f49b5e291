"""Relaxed accuracy: numbers may deviate by 5 %, other texts must be equal up to case.

Methani et al., "PlotQA: Reasoning over Scientific Plots", WACV 2020, section 5.2, and Masry et al.,
"ChartQA", Findings of ACL 2022, section 5.1. The details are those of pix2struct's metric, which
VLMEvalKit uses: a percent sign divides by 100, numbers with thousands separators or units are
texts, and a gold number of 0 is compared as text.
"""

from __future__ import annotations

from collections.abc import Sequence

TOLERANCE = 0.05
"""Largest relative deviation of a number."""


def relaxed_hit(answers: Sequence[str], prediction: str) -> bool:
    """Whether a prediction is one of the accepted answers, numbers within `TOLERANCE`.

    Args:
        answers: accepted answers.
        prediction: the model's answer; white space around it is ignored.

    Example:
        >>> relaxed_hit(["20%"], "0.21"), relaxed_hit(["Yes"], "yes"), relaxed_hit(["0"], "0.0")
        (True, True, False)
    """
    return any(_is_close(answer, prediction.strip()) for answer in answers)


def _is_close(answer: str, prediction: str) -> bool:
    gold, number = _read_number(answer), _read_number(prediction)
    if gold and number is not None:
        return abs(number - gold) / abs(gold) <= TOLERANCE
    return answer.lower() == prediction.lower()


def _read_number(text: str) -> float | None:
    """Read a number or a percentage; None for any other text."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
