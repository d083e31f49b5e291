"""Layer errors of GPTQ with several searches for scales, on held-out samples.

    python benchmarks/scale_searches.py [--bits 3] [--group-size 64] [--models tiny tiny-outliers]

Each linear layer of two decoder blocks is quantized under the Hessian of 64 calibration samples and
judged under that of 64 others, both from the float model. A search that lowers the error on the
calibration samples alone fits their noise. Writes results/scale_searches.json and
results/scale_searches.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any
from unittest.mock import patch

import torch
from common.machine import describe, provenance
from tabulate import tabulate
from torch import Tensor

from vlpress.calib.capture import watch_inputs
from vlpress.calib.observers import Hessian
from vlpress.calib.samples.draw import load_samples
from vlpress.model.families import family_of
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.loading import open_model, resolve_folder
from vlpress.quant.methods import gptq
from vlpress.quant.methods.affine import round_scales
from vlpress.quant.methods.layer_error import relative_error
from vlpress.quant.methods.scale_search import EXPONENT, SOLVER_RATIOS, search_scales
from vlpress.quant.recipe.scheme import QuantScheme
from vlpress.quant.resolve import encode_samples

HERE = Path(__file__).resolve().parent
BLOCKS = (1, 3)
SAMPLES = 64
SEEDS = (0, 1001)
"""Seeds of the calibration samples and of the held-out ones."""
Search = Callable[[Tensor, Tensor, Tensor, QuantScheme], Tensor]


def search(
    ratios: Sequence[float], exponent: float = EXPONENT, signs: Sequence[int] = (1,)
) -> Search:
    """Build a search of the smallest rounding error over ratios and signs of a scale."""

    def best(weight: Tensor, scales: Tensor, zero_points: Tensor, scheme: QuantScheme) -> Tensor:
        grouped, zeros = weight.reshape(*scales.shape, -1), zero_points.float()[..., None]
        chosen, least = scales, torch.full_like(scales, torch.inf)
        for ratio in ratios:
            for sign in signs:
                candidate = sign * round_scales(scales * ratio)
                levels = (grouped / candidate[..., None]).round()
                levels = levels.clamp(-zeros, scheme.max_level - zeros)
                errors = (levels * candidate[..., None] - grouped).abs().pow(exponent).sum(-1)
                chosen = torch.where(errors < least, candidate, chosen)
                least = torch.minimum(errors, least)
        return chosen

    return best


def spread(high: float, low: float, step: float = 0.0125) -> list[float]:
    """Ratios from 1, then from `high` down to `low`."""
    return [1.0, *(high - step * i for i in range(round((high - low) / step) + 1))]


SEARCHES: dict[str, Search] = {
    "as in the recipes": search_scales,
    "none": lambda weight, scales, zero_points, scheme: scales,
    "power 2": search(SOLVER_RATIOS, 2.0),
    "power 3": search(SOLVER_RATIOS, 3.0),
    "down to 0.6": search(spread(1.0, 0.6)),
    "1.15 to 0.7": search(spread(1.15, 0.7)),
    "either sign": search(SOLVER_RATIOS, signs=(1, -1)),
    "either sign, 1.15 to 0.7": search(spread(1.15, 0.7), signs=(1, -1)),
}


def main() -> None:
    """Measure, and write the result files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--models", nargs="+", default=["tiny", "tiny-outliers"])
    options = parser.parse_args()
    scheme = QuantScheme(options.bits, options.group_size)
    rows = {name: errors(name, scheme) for name in options.models}
    results = provenance() | {"bits": scheme.bits, "group_size": scheme.group_size, "errors": rows}
    stored = HERE / "results" / "scale_searches.json"
    stored.write_text(json.dumps(results, indent=1) + "\n")
    stored.with_suffix(".md").write_text(markdown(results))
    print(markdown(results))


def errors(name: str, scheme: QuantScheme) -> dict[str, list[list[float]]]:
    """Measure the error of each layer by search: on calibration samples, and held out."""
    processor = Processor.from_folder(resolve_folder(name))
    model = open_model(name, device="cpu", dtype="fp32")
    samples = [
        encode_samples(load_samples(None, n=SAMPLES, seed=seed), processor) for seed in SEEDS
    ]
    calibration, held_out = (hessians(model, prompts) for prompts in samples)
    result: dict[str, list[list[float]]] = {search: [] for search in SEARCHES}
    for layer, hessian in calibration.items():
        weight = model.get_parameter(f"{layer}.weight").detach()
        for search_name, scales_of in SEARCHES.items():
            with patch.object(gptq, "search_scales", scales_of):
                candidate = gptq.gptq(weight, hessian, scheme).weight.dequantize()
            both = (hessian, held_out[layer])
            result[search_name].append([relative_error([weight], [candidate], h) for h in both])
    return result


@torch.inference_mode()
def hessians(model: QwenVL, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Compute the Hessian of each layer's inputs."""
    specs = family_of(model.config).linears(model.config)
    observers = {
        spec.name: Hessian(spec.in_features)
        for spec in specs
        if spec.stage == "decoder" and spec.block in BLOCKS
    }
    watchers = {model.get_submodule(name): observer.update for name, observer in observers.items()}
    with watch_inputs(watchers):
        for prompt in prompts:
            model([prompt])
    return {name: observer.values for name, observer in observers.items()}


def markdown(results: dict[str, Any]) -> str:
    """Table of the results: geometric means, relative to the search of the recipes."""
    body = []
    for search_name in SEARCHES:
        cells = []
        for rows in results["errors"].values():
            for column in (0, 1):
                pairs = zip(rows[search_name], rows["as in the recipes"], strict=True)
                cells.append(f"{geometric_mean(a[column] / b[column] for a, b in pairs):.3f}")
        body.append([search_name, *cells])
    head = [
        "search",
        *(f"{m}, {s}" for m in results["errors"] for s in ("calibration", "held out")),
    ]
    table = tabulate(body, head, tablefmt="github", disable_numparse=True)
    return (
        f"# Searches for scales before GPTQ\n\n{describe(results)}\n\n"
        f"int{results['bits']} in groups of {results['group_size']}, symmetric. "
        f"Squared output error of the linear layers of {len(BLOCKS)} decoder blocks, geometric mean"
        "\nrelative to the search of the recipes: on the calibration samples, and on others."
        f"\n\n{table}\n"
    )


if __name__ == "__main__":
    main()
