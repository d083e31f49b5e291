"""Scores of hand-made answers by vlpress, compared with those of VLMEvalKit's functions.

The cases are stored with the scores of one version (`tests/golden/benchmark_vectors.json`), with
which the tests compare; here the functions are run again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import checks

from vlpress.eval.tasks.benchmarks import ocrbench_v2, screenspot
from vlpress.eval.tasks.coordinates import COORDINATES, predicted_box
from vlpress.eval.tasks.files.answer_cells import accepted_answers
from vlpress.eval.tasks.files.rows import Row
from vlpress.eval.tasks.matching.boxes import clip, iou
from vlpress.eval.tasks.matching.relaxed import relaxed_hit
from vlpress.eval.tasks.matching.vqa_accuracy import vqa_accuracy

Case = Mapping[str, Any]
RULE = "vlmevalkit"
"""Rule of places of VLMEvalKit."""
TOLERANCE = 1e-9  # another order of summation


def read_cases(path: Path) -> dict[str, list[Case]]:
    """Read the cases of `SCORERS` with their stored scores."""
    stored = json.loads(path.read_text("utf-8"))
    return {section: stored[section] for section in SCORERS}


def compare_vectors(
    section: str, cases: Sequence[Case], theirs: Sequence[float]
) -> checks.Compared:
    """Compare the scores of one section, and with the stored ones."""
    ours = [SCORERS[section](case) for case in cases]
    # A similarity of trees below 0 is 0 here.
    agreed = sum(
        math.isclose(a, max(b, 0), abs_tol=TOLERANCE) for a, b in zip(ours, theirs, strict=True)
    )
    stored = sum(
        math.isclose(case["expected"], score, abs_tol=TOLERANCE)
        for case, score in zip(cases, theirs, strict=True)
    )
    number = len(cases)
    result = f"{agreed} of {number} as here"
    if stored < number:
        result += f", {number - stored} other than stored"
    yield "scores of hand-made answers", result, agreed == stored == number > 0


def score_chartqa(case: Case) -> float:
    """Relaxed accuracy of a case."""
    return float(relaxed_hit(accepted_answers(case["answer"]), case["prediction"]))


def score_textvqa(case: Case) -> float:
    """VQA accuracy of a case."""
    return vqa_accuracy(accepted_answers(case["answer"]), case["prediction"])


def score_refcoco(case: Case) -> float:
    """Overlap of the boxes of a case."""
    box = predicted_box(COORDINATES[RULE], case["prediction"], case["size"], None)
    return 0.0 if box is None else iou(clip(box, case["size"]), case["box"])


def score_screenspot(case: Case) -> float:
    """Accuracy of the click of a case."""
    row = Row(0, {"question": "q", "bbox": case["bbox"]}, ())
    item = {**screenspot.fields(row, RULE), "size": case["size"]}
    return screenspot.score([item], {"0": case["prediction"]}, "").percent / 100


def score_ocrbench_v2(case: Case) -> float:
    """Score of a case by its task type."""
    values = {key: str(case[key]) for key in ("question", "eval", "bbox", "content")}
    values |= {"answer": str(case["answers"]), "category": case["type"]}
    item = ocrbench_v2.fields(Row(0, values, ()))
    return ocrbench_v2.score([item], {"0": case["prediction"]}, "").percent / 100


SCORERS: Mapping[str, Callable[[Case], float]] = {
    "relaxed": score_chartqa,
    "vqa": score_textvqa,
    "refcoco": score_refcoco,
    "screenspot": score_screenspot,
    "ocrbench_v2": score_ocrbench_v2,
}
NAMES = {
    "relaxed": "ChartQA",
    "vqa": "TextVQA",
    "refcoco": "RefCOCO",
    "screenspot": "ScreenSpot",
    "ocrbench_v2": "OCRBench v2",
}
"""Names of the sections in the table."""
