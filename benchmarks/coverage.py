"""Coverage of the 95 % lower bound of a paired difference for clustered questions.

    python benchmarks/coverage.py [--trials 1000]

A cluster has two units, such as a question in two languages; in a share of the clusters both units
have the same outcome. The comparison is between the score interval for independent units, a
percentile bootstrap over clusters, and the score interval scaled by the design effect, which
reports use. Writes results/coverage.json and results/coverage.md.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from common.machine import describe, provenance
from numpy.typing import NDArray
from tabulate import tabulate

from vlpress.eval.stats.clusters import design_effect
from vlpress.eval.stats.statistics import PairedOutcome, one_sided_bounds

HERE = Path(__file__).resolve().parent
CLUSTERS = (50, 200, 800)
DIFFERENCES = ((0.0, 0.0), (0.01, -0.005), (0.02, -0.01), (0.1, -0.02))
"""Share of units that differ between the models, and the true difference."""
ALIKE = (0.0, 0.5, 0.9)
RESAMPLES = 999
METHODS = ("independent", "bootstrap", "scaled")


def main() -> None:
    """Simulate, then write the two result files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    rows = [
        simulate(clusters, discordance, delta, alike, options.trials)
        for clusters, (discordance, delta), alike in product(CLUSTERS, DIFFERENCES, ALIKE)
    ]
    results = provenance() | {"trials": options.trials, "rows": rows}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "coverage.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "coverage.md").write_text(markdown(results))
    print(markdown(results))


def simulate(
    clusters: int, discordance: float, delta: float, alike: float, trials: int
) -> dict[str, Any]:
    """Share of trials in which each method's lower bound is at or below the true difference."""
    rng = np.random.default_rng(0)
    right = dict.fromkeys(METHODS, 0)
    names = [unit // 2 for unit in range(2 * clusters)]
    for _ in range(trials):
        values = draw(rng, clusters, discordance, delta, alike)
        flat: list[int] = values.ravel().tolist()
        effect = round(design_effect(flat, names), 6)
        counts = (2 * clusters, flat.count(-1), flat.count(1))
        right["independent"] += bound(*counts, 1.0) <= delta
        right["scaled"] += bound(*counts, effect) <= delta
        right["bootstrap"] += resampled(rng, values) <= delta
    shares = {method: right[method] / trials for method in METHODS}
    return {"clusters": clusters, "discordance": discordance, "alike": alike, **shares}


def draw(
    rng: np.random.Generator, clusters: int, discordance: float, delta: float, alike: float
) -> NDArray[np.int64]:
    """Differences ``[clusters, 2]``: -1, 0 or 1."""
    u = rng.random((clusters, 2))
    same = rng.random(clusters) < alike
    u[same] = u[same][:, :1]
    lost, won = (discordance - delta) / 2, (discordance + delta) / 2
    return np.where(u < lost, -1, np.where(u < lost + won, 1, 0))


@cache
def bound(n: int, lost: int, won: int, effect: float) -> float:
    """Lower bound of the score interval."""
    return one_sided_bounds(PairedOutcome(n, lost, won), design_effect=effect).low


def resampled(rng: np.random.Generator, values: NDArray[np.int64]) -> float:
    """Lower bound of a percentile bootstrap over clusters."""
    count = len(values)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return float(np.quantile(weights @ values.sum(1) / values.size, 0.05))


def markdown(results: dict[str, Any]) -> str:
    """Results as Markdown."""
    head = ["clusters of two", "units that differ", "clusters alike", *METHODS]
    body = [
        [row["clusters"], f"{row['discordance']:.1%}", f"{row['alike']:.0%}"]
        + [f"{row[method]:.3f}" for method in METHODS]
        for row in results["rows"]
    ]
    lines = [
        "# Coverage of the 95 % lower bound",
        "",
        describe(results),
        "",
        f"Share of {results['trials']} simulated comparisons in which the bound was at or below "
        "the true difference; it should be 0.95 or more.",
        "",
        tabulate(body, head, tablefmt="github", disable_numparse=True),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
