from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import vlpress
from vlpress.eval.planning import stages
from vlpress.eval.planning.workload import Passes


def test_plan_estimates_the_evaluation_of_the_given_benchmarks(
    checkpoint: Path, packaged: Path
) -> None:
    options: dict[str, Any] = {"device": "cpu", "calib_samples": 2}
    assert vlpress.plan(checkpoint, **options)["evaluation"] is None
    bench = ("builtin-mmbench", "builtin-ocrbench")
    both = vlpress.plan(checkpoint, **options, bench=bench)
    evaluation = both["evaluation"]
    assert list(evaluation["benchmarks"]) == list(bench)
    assert evaluation["benchmarks"]["builtin-ocrbench"]["questions"] == 9
    parts = [entry["seconds"] for entry in evaluation["benchmarks"].values()]
    assert min(parts) > 0 and sum(parts) < evaluation["seconds"]  # and the timing of both models
    assert both["rates"]["is_cached"]
    with pytest.raises(ValueError, match="unknown benchmark 'mmlu'"):
        vlpress.plan(checkpoint, bench="mmlu")


def test_titles_of_stages_contain_benchmark_and_pass() -> None:
    passes = {"a": Passes(1, 2), "b": Passes(3, 4)}
    expected = stages.evaluation_stages(passes, stages.ORIGINAL, stages.LOGPROBS, samples=1)
    assert [(stage.title, stage.seconds) for stage in expected] == [
        ("evaluating the original: a", 1),
        ("evaluating the original: b", 3),
        ("log-probabilities of the original: a", 2),
        ("log-probabilities of the original: b", 4),
    ]
