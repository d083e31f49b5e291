"""Coverage of the 95 % intervals of scores with several sampled answers to each question.

    python benchmarks/coverage_samples.py [--trials 2000]

Each question has a probability of a right answer (beta distribution with parameters 0.8 and 0.3:
most questions are easy, some hard). The candidate's log-odds differ from the base's by a loss and a
normal deviation, so that the models are correlated by question. In a share of the samples both
models draw with the same random number, as they do with the same seeds. Compared for the difference
are the score interval of fractional counts, the same scaled by the variance of the means of the
questions (as in reports), the t interval over questions, and the score interval that takes all
answers for independent questions. Writes results/coverage_samples.json and
results/coverage_samples.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from common.machine import describe, provenance
from numpy.typing import NDArray
from scipy.special import expit, logit, stdtrit
from tabulate import tabulate

from vlpress.eval.stats.sample_means import difference_variance, score_interval
from vlpress.eval.stats.statistics import (
    Interval,
    count_outcomes,
    one_sided_bounds,
    paired_interval,
)

HERE = Path(__file__).resolve().parent
QUESTIONS = (30, 100, 500)
SAMPLES = (3, 10)
LOSSES = ((0.0, 0.0), (0.05, 0.1), (0.3, 0.5), (1.0, 1.0))
"""Mean loss in log-odds, and standard deviation of the difference between questions."""
SHARED = (0.0, 0.9)
"""Share of the samples that both models draw with the same random number."""
BETA = (0.8, 0.3)
POPULATION = 4_000_000
METHODS = ("fractional", "scaled", "t", "independent")

Rights = NDArray[np.bool_]


@dataclass(frozen=True)
class Setting:
    """One simulated pair of models."""

    questions: int
    samples: int
    loss: float
    deviation: float
    shared: float


def main() -> None:
    """Simulate, then write the two result files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    rows = [
        simulate(Setting(questions, samples, loss, deviation, shared), options.trials)
        for questions, samples, (loss, deviation), shared in product(
            QUESTIONS, SAMPLES, LOSSES, SHARED
        )
    ]
    results = provenance() | {"trials": options.trials, "rows": rows}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "coverage_samples.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "coverage_samples.md").write_text(markdown(results))
    print(markdown(results))


def simulate(setting: Setting, trials: int) -> dict[str, Any]:
    """Share of trials in which each interval holds the true value."""
    base_score, score = true_scores(setting.loss, setting.deviation)
    truth = score - base_score
    rng = np.random.default_rng(0)
    lower, both, width = (dict.fromkeys(METHODS, 0.0) for _ in range(3))
    mean = 0.0
    for _ in range(trials):
        base, candidate = draw(rng, setting)
        for method, (bound, interval) in intervals(base, candidate).items():
            lower[method] += (bound <= truth) / trials
            both[method] += (interval.low <= truth <= interval.high) / trials
            width[method] += 100 * (interval.high - interval.low) / trials
        values = candidate.mean(1).tolist()
        own = score_interval(values, range(len(values)), samples=setting.samples)
        mean += (own.low <= score <= own.high) / trials
    return {
        **vars(setting),
        "delta": 100 * truth,
        "lower": lower,
        "two_sided": both,
        "width": width,
        "mean": mean,
    }


def population(
    rng: np.random.Generator, size: int, loss: float, deviation: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities of a right answer of both models, ``[size]`` each."""
    base = rng.beta(*BETA, size).clip(1e-9, 1 - 1e-9)
    shift = deviation * rng.standard_normal(size) - loss
    return base, expit(logit(base) + shift)


@cache
def true_scores(loss: float, deviation: float) -> tuple[float, float]:
    """Scores of both models over the whole population, in [0, 1]."""
    base, candidate = population(np.random.default_rng(99), POPULATION, loss, deviation)
    return float(base.mean()), float(candidate.mean())


def draw(rng: np.random.Generator, setting: Setting) -> tuple[Rights, Rights]:
    """Whether the answers of both models are right, ``[questions, samples]`` each."""
    base, candidate = population(rng, setting.questions, setting.loss, setting.deviation)
    shape = (setting.questions, setting.samples)
    first = rng.random(shape)
    second = np.where(rng.random(shape) < setting.shared, first, rng.random(shape))
    return first < base[:, None], second < candidate[:, None]


def intervals(base: Rights, candidate: Rights) -> dict[str, tuple[float, Interval]]:
    """Lower 95 % bound and two-sided 95 % interval of the difference by each method."""
    questions, samples = base.shape
    means = candidate.mean(1) - base.mean(1)
    outcome = count_outcomes(base.mean(1).tolist(), candidate.mean(1).tolist())
    effect = difference_variance(means.tolist(), samples)
    single = count_outcomes(base.ravel().tolist(), candidate.ravel().tolist())
    error = means.std(ddof=1) / np.sqrt(questions)
    one, two = (float(stdtrit(questions - 1, level)) * error for level in (0.95, 0.975))
    center = float(means.mean())
    return {
        "fractional": (one_sided_bounds(outcome).low, paired_interval(outcome)),
        "scaled": (
            one_sided_bounds(outcome, design_effect=effect).low,
            paired_interval(outcome, design_effect=effect),
        ),
        "t": (center - one, Interval(center - two, center + two)),
        "independent": (one_sided_bounds(single).low, paired_interval(single)),
    }


def markdown(results: dict[str, Any]) -> str:
    """Results as Markdown."""
    head = ["questions", "samples", "true Δ", "shared"]
    head += [f"lower: {method}" for method in METHODS]
    head += ["two-sided: scaled", "width: scaled", "width: fractional", "score of one model"]
    body = [
        [row["questions"], row["samples"], f"{row['delta']:.2f}", f"{row['shared']:.0%}"]
        + [f"{row['lower'][method]:.3f}" for method in METHODS]
        + [f"{row['two_sided']['scaled']:.3f}"]
        + [f"{row['width'][method]:.2f}" for method in ("scaled", "fractional")]
        + [f"{row['mean']:.3f}"]
        for row in results["rows"]
    ]
    lines = [
        "# Coverage of the 95 % intervals for sampled answers",
        "",
        describe(results),
        "",
        f"Share of {results['trials']} simulated comparisons in which the interval held the true "
        "value; it should be 0.95 or more. Lower: the one-sided bound of the difference, which "
        "decides a verdict. Widths are those of the two-sided interval, in points. The last column "
        "is the two-sided interval of the candidate's score.",
        "",
        tabulate(body, head, tablefmt="github", disable_numparse=True),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
