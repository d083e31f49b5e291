"""Coverage of the 95 % lower bound of a paired difference for answers with parts of a point.

    python benchmarks/coverage_parts.py [--trials 2000]

Questions differ between the models with a given probability. A difference is a whole point or, as
between two similarities of DocVQA (ANLS), up to half of one. The score interval of fractional
counts, which reports use, is compared with the normal approximation for a mean. Writes
results/coverage_parts.json and results/coverage_parts.md.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from common.machine import describe, provenance
from numpy.typing import NDArray
from tabulate import tabulate

from vlpress.eval.stats.statistics import count_outcomes, one_sided_bounds

HERE = Path(__file__).resolve().parent
QUESTIONS = (50, 200, 1000, 5349)
DIFFERENCES = ((0.01, 1.0), (0.05, 0.5), (0.05, 0.7), (0.2, 0.6))
"""Share of questions that differ, and the share of these that the candidate loses."""
WHOLE = (0.0, 0.5, 1.0)
"""Share of the differences that are a whole point."""
Z = 1.6448536269514722  # 95 % quantile of the normal distribution


def main() -> None:
    """Simulate, then write the two result files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    rows = [
        simulate(questions, share, losing, whole, options.trials)
        for questions, (share, losing), whole in product(QUESTIONS, DIFFERENCES, WHOLE)
    ]
    results = provenance() | {"trials": options.trials, "rows": rows}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "coverage_parts.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "coverage_parts.md").write_text(markdown(results))
    print(markdown(results))


def simulate(
    questions: int, share: float, losing: float, whole: float, trials: int
) -> dict[str, Any]:
    """Share of trials in which each lower bound is at or below the true difference."""
    rng = np.random.default_rng(0)
    mean_size = whole + (1 - whole) * 0.25
    delta = share * (1 - 2 * losing) * mean_size
    counts = normal = 0
    width = 0.0
    for _ in range(trials):
        values = draw(rng, questions, share, losing, whole)
        base, candidate = np.maximum(-values, 0).tolist(), np.maximum(values, 0).tolist()
        bound = one_sided_bounds(count_outcomes(base, candidate)).low
        usual = values.mean() - Z * values.std(ddof=1) / np.sqrt(questions)
        counts += bound <= delta
        normal += bool(usual <= delta)
        width += (values.mean() - bound) / trials
    return {
        "questions": questions,
        "differ": share,
        "lost": losing,
        "whole": whole,
        "counts": counts / trials,
        "normal": normal / trials,
        "distance": 100 * width,
    }


def draw(
    rng: np.random.Generator, questions: int, share: float, losing: float, whole: float
) -> NDArray[np.float64]:
    """Differences of the questions, in [-1, 1]."""
    sizes = np.where(rng.random(questions) < whole, 1.0, rng.uniform(0, 0.5, questions))
    signs = np.where(rng.random(questions) < losing, -1.0, 1.0)
    return np.where(rng.random(questions) < share, signs * sizes, 0.0)


def markdown(results: dict[str, Any]) -> str:
    """Results as Markdown."""
    head = ["questions", "differ", "of these lost", "whole points"]
    head += ["fractional counts", "normal", "distance of the bound in points"]
    body = [
        [row["questions"], *(f"{row[key]:.0%}" for key in ("differ", "lost", "whole"))]
        + [f"{row[key]:.3f}" for key in ("counts", "normal")]
        + [f"{row['distance']:.2f}"]
        for row in results["rows"]
    ]
    lines = [
        "# Coverage of the 95 % lower bound for answers with parts of a point",
        "",
        describe(results),
        "",
        f"Share of {results['trials']} simulated comparisons in which the bound was at or below "
        "the true difference; it should be 0.95 or more. The last column is the mean distance of "
        "the bound by fractional counts from the observed difference.",
        "",
        tabulate(body, head, tablefmt="github", disable_numparse=True),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
