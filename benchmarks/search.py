"""Searched recipes against uniform bits and against end layers at 8 bits, at equal bytes.

    python benchmarks/search.py [--models tiny tiny-outliers] [--held-out 512] [--seeds 0]
    python benchmarks/search.py --no-rows --errors gptq --out out/search-gptq.json
    python benchmarks/search.py --masks --out benchmarks/results/search-masks.json

Every rival is a fixed recipe. The budget of the search is the rival's own size, so that the found
recipe is never larger. Both are quantized by GPTQ with the same calibration drawings, and their KL
from the original is measured in float32 on the same held-out drawings: mean with its 95 % interval,
and the paired interval of the difference. `ends` keeps the first and the last decoder layer at 8
bits, with fewer bits in the others. With `--masks` the rivals have the same share of zeros in every
decoder layer, and the budget is that share and the rival's bits per decoder weight. The rank
correlation is that of `--check`, for more choices.
Writes results/search.json and results/search.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common.divergence import SEEDS, Divergence, Judge, paired, summarize
from common.machine import describe, provenance
from tabulate import tabulate

from vlpress.calib.samples.draw import load_samples
from vlpress.common.progress import silent
from vlpress.eval.search.check import rank_correlation
from vlpress.eval.search.run import Scored, load_prepared, score_model
from vlpress.model.processing.processor import Processor
from vlpress.quant.checkpoint.loading import open_model, resolve_folder
from vlpress.quant.config import ModelSettings
from vlpress.quant.driver.pipeline import quantize_
from vlpress.quant.plan.plan import make_plan
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.resolve import Source, encode_samples
from vlpress.quant.search.budget import Budget
from vlpress.quant.search.space import SearchSpace, masks_by

HERE = Path(__file__).resolve().parent
CHECKS, CHECK_SAMPLES = 60, 128
CHECK_SEED = 7
"""Choices whose predicted loss is checked, the drawings for that, and their seed."""
REST: list[dict[str, Any]] = [
    {"method": "gptq", "bits": 4, "group_size": 32, "targets": ["tower"]},
    {"method": "rtn", "bits": 4, "group_size": 128, "targets": ["embedding"]},
    {"method": "rtn", "bits": 8, "group_size": 128, "targets": ["head"]},
]
"""Tower, embedding and head as in the preset w4a16-all."""
LAYERS = "model.layers.*"
PREFIXES = {"decoder": "model.layers.", "tower": "visual."}
DECODERS: dict[str, tuple[int, int, bool]] = {
    "uniform w3": (3, 128, False),
    "uniform w4": (4, 128, False),
    "ends w8, rest w2 g32": (2, 32, True),
    "ends w8, rest w3": (3, 128, True),
}
"""Bits and group size of decoder layers, and whether the first and the last have 8 bits."""
ROWS = (
    ("uniform w3", True),
    ("ends w8, rest w2 g32", True),
    ("uniform w4", True),
    ("ends w8, rest w3", True),
    ("uniform w3", False),
    ("ends w8, rest w3", False),
)
"""Decoder, and whether tower, embedding and head are quantized; otherwise they stay in bf16."""
MASKED: dict[str, tuple[int, float]] = {
    "w4, keep 0.7": (4, 0.7),
    "w4, keep 0.5": (4, 0.5),
    "w3, keep 0.7": (3, 0.7),
}
"""Bits and share of kept weights of all decoder layers, masks by SparseGPT's score."""


def masked_rival(name: str, calibration: dict[str, int]) -> Recipe:
    """Build the recipe of a rival with zeros."""
    bits, keep = MASKED[name]
    step = {"method": "gptq", "bits": bits, "group_size": 128, "targets": [LAYERS], "keep": keep}
    return Recipe.from_dict({"name": name, "calibration": calibration, "step": [step]})


def rival(decoder: str, is_whole: bool, layers: int, calibration: dict[str, int]) -> Recipe:
    """Build the recipe of a rival."""
    bits, group, has_ends = DECODERS[decoder]
    ends = [f"model.layers.{index}.*" for index in (0, layers - 1)]
    step = {"method": "gptq", "bits": bits, "group_size": group, "targets": [LAYERS]}
    steps = [step | ({"ignore": ends} if has_ends else {})]
    if has_ends:
        steps.append({"method": "gptq", "bits": 8, "group_size": 128, "targets": ends})
    return Recipe.from_dict(
        {
            "name": title(decoder, is_whole),
            "tie": not is_whole,
            "calibration": calibration,
            "step": [*(REST if is_whole else []), *steps],
        }
    )


def title(decoder: str, is_whole: bool) -> str:
    """Name of a rival."""
    return f"{decoder}; {'tower w4, embedding w4, head w8' if is_whole else 'others bf16'}"


class Comparison:
    """Rivals and searched recipes of one model."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.options = name, options
        self.source = Source.find(name, ModelSettings(device="cpu", dtype="fp32"))
        self.processor = Processor.from_folder(resolve_folder(name))
        self.judge = None if options.no_rows else Judge(name, SEEDS["held_out"], options.held_out)

    def measure(self) -> dict[str, Any]:
        """Compare all rows; the search runs once per calibration seed."""
        scored = {seed: self.score(seed) for seed in self.options.seeds}
        rows = []
        names = [*MASKED] if self.options.masks else [title(*row) for row in ROWS]
        for number, name in enumerate(() if self.options.no_rows else names):
            of_rival, of_found, sizes, choices = [], [], [], []
            for seed in self.options.seeds:
                calibration = {"samples": self.options.samples, "seed": seed}
                recipe, budget = self.task(number, calibration)
                size = make_plan(self.source.config, recipe).candidate_bytes
                solution = scored[seed].solve(budget)
                data = scored[seed].recipe(solution, "search", **calibration)
                of_rival.append(self.divergence(recipe, seed))
                of_found.append(self.divergence(Recipe.from_dict(data), seed))
                sizes.append((size, solution.bytes))
                choices.append(counts(scored[seed], solution.chosen))
            rows.append(
                {
                    "rival": name,
                    "rival_bytes": sizes[0][0],
                    "found_bytes": [size for _, size in sizes],
                    "found": choices,
                    "rival_kl": summarize(of_rival),
                    "found_kl": summarize(of_found),
                    "difference": list(bounds(paired(of_found, of_rival))),
                }
            )
            print(self.name, json.dumps(rows[-1]["rival"]), *kl_cells(rows[-1]), file=sys.stderr)
        checks = [each.check for each in scored.values()]
        return {"rows": rows, "checks": checks}

    def task(self, row: int, calibration: dict[str, int]) -> tuple[Recipe, Budget]:
        """Return the rival of a row, and the budget that the search has."""
        if self.options.masks:
            name = [*MASKED][row]
            recipe = masked_rival(name, calibration)
            quantized = make_plan(self.source.config, recipe).quantized
            bits = 8 * sum(layer.packed_bytes for layer in quantized)
            weights = sum(layer.spec.weights for layer in quantized)
            return recipe, Budget(bits=bits / weights, keep=MASKED[name][1])
        decoder, is_whole = ROWS[row]
        layers = self.source.config.text.num_hidden_layers
        recipe = rival(decoder, is_whole, layers, calibration)
        return recipe, Budget(bytes=make_plan(self.source.config, recipe).candidate_bytes)

    def score(self, seed: int) -> Scored:
        """Predict the losses of all choices."""
        masks = masks_by("sparsegpt") if self.options.masks else (None,)
        space = SearchSpace.of(self.source.config, masks=masks)
        prompts = self.prompts(self.options.samples, seed)
        return score_model(
            load_prepared(self.source, space),
            space,
            prompts,
            self.prompts(CHECK_SAMPLES, CHECK_SEED),
            errors=self.options.errors,
            checks=CHECKS,
            seed=seed,
            cache_bytes=2**30,
            reporter=silent(),
        )

    def prompts(self, samples: int, seed: int) -> list[Any]:
        """Encode calibration drawings."""
        return encode_samples(load_samples(None, n=samples, seed=seed), self.processor)

    def divergence(self, recipe: Recipe, seed: int) -> Divergence:
        """Quantize the model and measure its divergence."""
        model = open_model(self.name, device="cpu")
        quantize_(model, recipe, self.prompts(self.options.samples, seed))
        assert self.judge is not None
        return self.judge.measure(model)


def bounds(interval: Any) -> tuple[float, float]:
    """Ends of an interval."""
    return interval.low, interval.high


def counts(scored: Scored, chosen: tuple[int, ...]) -> dict[str, int]:
    """Number of groups by part and choice."""
    result: dict[str, int] = {}
    for group, choice in zip(scored.space.groups, chosen, strict=True):
        key = f"{group.part}: {group.choices[choice].label}"
        result[key] = result.get(key, 0) + 1
    return result


def kl_cells(row: dict[str, Any]) -> list[str]:
    """KL of rival and found recipe with their intervals, and the difference, in 1e-4 nats."""

    def shown(entry: dict[str, Any]) -> str:
        low, high = entry["ci95"]
        return f"{1e4 * entry['kl_mean']:.1f} [{1e4 * low:.1f}, {1e4 * high:.1f}]"

    low, high = row["difference"]
    difference = f"[{1e4 * low:+.1f}, {1e4 * high:+.1f}]"
    return [shown(row["rival_kl"]), shown(row["found_kl"]), difference]


def markdown(results: dict[str, Any]) -> str:
    """Format the results."""
    rows, choices, checks = [], [], []
    for name, model in results["models"].items():
        for row in model["rows"]:
            sizes = [f"{row['rival_bytes'] / 1e6:.3f}", f"{max(row['found_bytes']) / 1e6:.3f}"]
            rows.append([name, row["rival"], *sizes, *kl_cells(row)])
            listed = ", ".join(f"{count} x {what}" for what, count in row["found"][0].items())
            choices.append([name, f"{max(row['found_bytes']) / 1e6:.3f}", listed])
        for check in model["checks"]:
            for part in ("all", "decoder", "tower"):
                pairs = [
                    pair
                    for pair in check["pairs"]
                    if part == "all" or pair["group"].startswith(PREFIXES[part])
                ]
                if rank_correlation(pairs) is not None:
                    checks.append([name, part, len(pairs), *correlation(pairs)])
    heads = ["model", "rival", "MB", "found, MB", "KL of rival", "KL of found", "difference"]
    return "\n".join(
        [
            "# Searched recipes at equal bytes (built-in models, drawings)",
            "",
            describe(results),
            "",
            f"KL(original || quantized) in 1e-4 nats per answer token on {results['held_out']} "
            "held-out drawings, float32: mean with its 95 % interval over drawings, and the 95 % "
            "interval of the paired difference, found minus rival. The budget of each search is "
            f"{results['budget']} of the rival. {results['samples']} calibration drawings, seeds "
            f"{', '.join(map(str, results['seeds']))}; losses predicted from {results['errors']} "
            "errors.",
            "",
            tabulate(rows, heads, tablefmt="github", disable_numparse=True),
            "",
            "Choices of the first seed, groups of layers by part:",
            "",
            tabulate(choices, ["model", "MB", "choices"], tablefmt="github", disable_numparse=True),
            "",
            f"Predicted loss against measured KL of single choices, {CHECK_SAMPLES} other drawings "
            "(Spearman's rank correlation; median of measured / predicted):",
            "",
            tabulate(
                checks,
                ["model", "part", "choices", "rank correlation", "measured / predicted"],
                tablefmt="github",
                disable_numparse=True,
            ),
            "",
        ]
    )


def correlation(pairs: list[dict[str, Any]]) -> list[str]:
    """Rank correlation and median ratio of some pairs."""
    ratio = median(pair["measured"] / pair["predicted"] for pair in pairs)
    return [f"{rank_correlation(pairs):.3f}", f"{ratio:.2f}"]


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=["tiny", "tiny-outliers"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of calibration")
    parser.add_argument("--samples", type=int, default=128, help="calibration drawings")
    parser.add_argument("--held-out", type=int, default=512, help="held-out drawings")
    parser.add_argument("--errors", choices=("rtn", "gptq"), default="rtn")
    parser.add_argument("--no-rows", action="store_true", help="measure the correlation alone")
    parser.add_argument("--masks", action="store_true", help="search shares of zeros")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=HERE / "results" / "search.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {
        **provenance(),
        "samples": options.samples,
        "seeds": options.seeds,
        "held_out": options.held_out,
        "errors": options.errors,
        "budget": "the bits and the zeros" if options.masks else "the size",
        "models": {name: Comparison(name, options).measure() for name in options.models},
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
