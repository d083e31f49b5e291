"""Scores of hand-made answers by VLMEvalKit's functions for single benchmarks.

    PYTHONPATH=DISTRIBUTION python start.py vectors.py CASES RESULT

CASES is a JSON file: section -> list of cases, see `SCORERS`. RESULT has the score of each case.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlmeval.dataset.utils.vqa_eval import hit_calculate, process_line

Case = Mapping[str, Any]


def main() -> None:
    """Read the cases, write the scores."""
    cases = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    scores = {name: [SCORERS[name](case) for case in rows] for name, rows in cases.items()}
    Path(sys.argv[2]).write_text(json.dumps(scores), "utf-8")


def score_chartqa(case: Case) -> float:
    """Relaxed accuracy of `prediction`; `answer` is a cell of the file."""
    return _hit(case, "relaxed_accuracy", "ChartQA_TEST")


def score_textvqa(case: Case) -> float:
    """VQA accuracy of `prediction`; `answer` is a cell of the file."""
    return _hit(case, "vqa_score", "TextVQA_VAL")


def _hit(case: Case, method: str, dataset: str) -> float:
    return float(hit_calculate([process_line(dict(case), method=method)], dataset)[0])


SCORERS: Mapping[str, Callable[[Case], float]] = {
    "relaxed": score_chartqa,
    "vqa": score_textvqa,
}

if __name__ == "__main__":
    main()
