"""Scores of hand-made answers by VLMEvalKit's functions for single benchmarks.

    PYTHONPATH=DISTRIBUTION python start.py vectors.py CASES RESULT

CASES is a JSON file: section -> list of cases, see `SCORERS`. RESULT has the score of each case.
"""

from __future__ import annotations

import copy
import io
import json
import math
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from vlmeval.dataset.GUI.screenspot import ScreenSpot
from vlmeval.dataset.refcoco import RefCOCODataset
from vlmeval.dataset.utils.ocrbrnch_v2_eval import process_predictions
from vlmeval.dataset.utils.vqa_eval import hit_calculate, process_line
from vlmeval.smp import dump

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


def score_refcoco(case: Case) -> float:
    """Overlap of `prediction` with `box`, both in an image of `size`."""
    width, height = case["size"]
    box = RefCOCODataset._parse_prediction(case["prediction"])
    box = None if box is None else RefCOCODataset._to_absolute(box, width, height)
    return 0.0 if box is None else float(RefCOCODataset._compute_iou(box, np.array(case["box"])))


def score_screenspot(case: Case) -> float:
    """Accuracy of `prediction` for `bbox`, a cell of the file, in an image of `size`."""
    with TemporaryDirectory() as folder:
        Image.new("RGB", case["size"]).save(Path(folder) / "1.png")
        row = {
            "index": 0,
            "question": "q",
            "bbox": case["bbox"],
            "prediction": case["prediction"],
            "data_type": "icon",
            "data_source": "web",
            "image_path": "1.png",
        }
        answers = Path(folder) / "answers.xlsx"
        dump(pd.DataFrame([row]), str(answers))
        dataset = ScreenSpot(skeleton=True)
        dataset.img_root = folder
        with warnings.catch_warnings():  # means of categories without rows
            warnings.simplefilter("ignore")
            return float(dataset.evaluate_point(str(answers))["Overall_Accuracy"]) / 100


def score_ocrbench_v2(case: Case) -> float:
    """Score of `prediction` by its task type; spotting writes files into the working folder."""
    entry = {**case, "type": case["type"], "predict": case["prediction"]}
    if entry["eval"] == "without eval":
        del entry["eval"]
    try:
        with redirect_stdout(io.StringIO()):
            return float(process_predictions([copy.deepcopy(entry)])[0]["score"])
    except Exception:  # many types; a score is missing where the code stops
        return math.nan


SCORERS: Mapping[str, Callable[[Case], float]] = {
    "relaxed": score_chartqa,
    "vqa": score_textvqa,
    "refcoco": score_refcoco,
    "screenspot": score_screenspot,
    "ocrbench_v2": score_ocrbench_v2,
}

if __name__ == "__main__":
    main()
