"""Speed of speculative decoding at batch 1, beside plain decoding and the quantized model alone.

    python benchmarks/speculation_speed.py [--layers 12] [--work out/speculation]

Needs an otherwise idle machine. It measures tokens per second of pairs of the built-in models, and
at the widths of the 3B model, with random weights, the cost of a draft and of a pass over several
rows, from which the speed for a share of accepted drafts follows (arXiv 2211.17192, theorem 3.8).
Writes results/speculation_speed.json and results/speculation_speed.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
import whole_model
from common.machine import ROOT, describe, provenance
from common.speculation import DRAFT_TOKENS, FREE, PAIRS, Lab, Pair, Target
from tabulate import tabulate

from vlpress.model.features import Features
from vlpress.model.generation import generate
from vlpress.model.speculation.decoding import Speculated, generate_with_drafts, read_tokens
from vlpress.model.speculation.drafts import expected_tokens
from vlpress.quant.checkpoint.loading import open_model

HERE = Path(__file__).resolve().parent
ACCEPTED = (0.5, 0.8, 0.9, 0.95, 0.98)
"""Shares of accepted drafts that speeds are computed for."""


def measure_speed(options: argparse.Namespace) -> dict[str, Any]:
    """Measure tokens per second of the pairs in bf16, and the costs at the widths of 3B."""
    lab, rows, header = Lab(options.work, options.timed), [], provenance()
    for pair in PAIRS[: options.pairs]:
        if pair.target.dtype == "bf16" and not pair.target.free:
            rows.append({"target": pair.target.name, "draft": pair.draft, **time_pair(lab, pair)})
            print(rows[-1], flush=True)
    return {
        **header,
        "drawings": options.timed,
        "tokens": FREE,
        "rows": rows,
        "layers": options.layers,
        "costs": measure_costs(options),
    }


def time_pair(lab: Lab, pair: Pair) -> dict[str, float]:
    """Tokens per second with and without drafts, in turns; medians over drawings.

    The time of an answer of one token, prompts included, is subtracted.
    """
    target = Target(pair.target.model, pair.target.recipe, pair.target.dtype, free=True)
    pair = Pair(target, pair.draft)
    model = lab.open(target.model, target.recipe, target.dtype)
    prompts, seconds = lab.prompts(target.model), {"plain": [0.0], "drafts": [0.0]}
    accepted = drafted = 0
    for index in [0, *range(len(prompts))]:  # the first one warms up
        features = lab.features(target.model, target.dtype, index)
        given: dict[str, Any] = {"features": [features], "stop_ids": ()}

        def of_plain(count: int, index: int = index, given: dict[str, Any] = given) -> None:
            generate(model, [prompts[index]], max_new_tokens=count, **given)

        def of_drafts(
            count: int, index: int = index, features: list[Features] = features
        ) -> Speculated:
            return generate_with_drafts(
                model,
                prompts[index],
                lab.drafter(pair, index),
                draft_tokens=DRAFT_TOKENS,
                max_new_tokens=count,
                stop_ids=(),
                features=features,
            )

        seconds["plain"].append(timed(lambda f=of_plain: f(FREE)) - timed(lambda f=of_plain: f(1)))
        seconds["drafts"].append(
            timed(lambda f=of_drafts: f(FREE)) - timed(lambda f=of_drafts: f(1))
        )
        result = of_drafts(FREE)
        accepted, drafted = accepted + result.accepted, drafted + result.drafted
    rates = {name: (FREE - 1) / median(values[2:]) for name, values in seconds.items()}
    return {
        **{f"{name}_tokens_per_second": rate for name, rate in rates.items()},
        "speedup": rates["drafts"] / rates["plain"],
        "accepted_share": accepted / max(1, drafted),
    }


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure_costs(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of passes over 1 and several rows at the widths of 3B, bf16 and w4a16 in turns."""
    folders = whole_model.write_vlpress(options.work, options.layers)
    models = {name: open_model(folder, device="cpu") for name, folder in folders.items()}
    caches = {name: model.new_cache(1, 512) for name, model in models.items()}
    seconds: dict[str, list[float]] = {}

    def read(name: str, rows: int) -> None:
        model, cache_ = models[name], caches[name]
        with torch.inference_mode():
            hidden = read_tokens(model, [17] * rows, cache_.length, cache_)
            model.logits(hidden[0])

    for name in models:
        read(name, 256)
    for round_ in range(options.rounds + 1):
        for name, cache_ in caches.items():
            for rows in (1, DRAFT_TOKENS + 1):
                elapsed = timed(lambda n=name, r=rows: read(n, r))
                cache_.roll_back(rows)
                if round_:  # the first one warms up
                    seconds.setdefault(f"{name}, {rows} rows", []).append(elapsed)
    medians = {name: median(values) for name, values in seconds.items()}
    return {"seconds": medians, "speedups": list(predicted(medians))}


def predicted(seconds: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """Speed of a bf16 target with w4a16 drafts, relative to plain decoding in bf16.

    A pass costs g drafts and one reading of g + 1 rows. A free draft, such as n-grams, costs the
    latter only.
    """
    several = f"{DRAFT_TOKENS + 1} rows"
    for target, draft in (("bf16", "w4a16"), ("bf16", None), ("w4a16", None)):
        one = seconds[f"{target}, 1 rows"]
        cost = 0.0 if draft is None else seconds[f"{draft}, 1 rows"] / one
        verify = seconds[f"{target}, {several}"] / one
        for accepted in ACCEPTED:
            tokens = expected_tokens(accepted, DRAFT_TOKENS)
            yield {
                "target": target,
                "draft": draft or "free",
                "accepted": accepted,
                "draft_cost": cost,
                "verify_cost": verify,
                "speedup": tokens / (DRAFT_TOKENS * cost + verify),
            }


def markdown(results: Mapping[str, Any]) -> str:
    """Results as Markdown."""
    seconds = results["costs"]["seconds"]
    lines = [
        "# Speed of speculative decoding",
        "",
        describe(dict(results)),
        "",
        f"Tokens per second at batch 1, answers of {results['tokens']} tokens without an end, "
        f"medians over {results['drawings']} drawings; prompts not included.",
        "",
        tabulate(
            [measured_row(row) for row in results["rows"]],
            ["target", "draft", "plain", "with drafts", "times", "accepted"],
            tablefmt="github",
            disable_numparse=True,
        ),
        "",
        f"At the widths of Qwen2.5-VL-3B, {results['layers']} decoder layers, random weights: "
        + "; ".join(f"{name} {1000 * value:.1f} ms" for name, value in seconds.items())
        + f". w4a16 alone is {alone(seconds):.2f} times as fast as bf16. "
        "Computed from these costs, for shares of accepted drafts:",
        "",
        tabulate(
            [
                [row["target"], row["draft"], row["accepted"], f"{row['speedup']:.2f}"]
                for row in results["costs"]["speedups"]
            ],
            ["target", "draft", "accepted", "times plain decoding"],
            tablefmt="github",
            disable_numparse=True,
        ),
    ]
    return "\n".join(lines) + "\n"


def measured_row(row: Mapping[str, Any]) -> list[str]:
    """Cells of one pair."""
    rates = (f"{row[f'{name}_tokens_per_second']:.1f}" for name in ("plain", "drafts"))
    accepted = f"{100 * row['accepted_share']:.1f} %"
    return [row["target"], row["draft"], *rates, f"{row['speedup']:.2f}", accepted]


def alone(seconds: Mapping[str, float]) -> float:
    """Speed of w4a16 relative to bf16, without drafts."""
    return seconds["bf16, 1 rows"] / seconds["w4a16, 1 rows"]


def main() -> None:
    """Measure, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="the first ones only")
    parser.add_argument("--timed", type=int, default=16, help="drawings whose answers are timed")
    parser.add_argument("--layers", type=int, default=12, help="of the decoder with 3B's widths")
    parser.add_argument("--rounds", type=int, default=20, help="of each cost")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "speculation")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "speculation_speed.json")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    results = measure_speed(options)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
