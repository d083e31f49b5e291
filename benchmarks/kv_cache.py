"""Cost of quantized KV caches on the built-in models: KL and top-1 agreement on held-out drawings.

    python benchmarks/kv_cache.py [--models tiny tiny-outliers tiny3] [--samples 512]

The weights are the model's own; base and candidate differ in the KV cache alone. Both compute in
float32. `fp8` has scales of 1, `fp8 calibrated` those of 64 calibration drawings, as a recipe's
[kv_cache] chooses them. Writes results/kv_cache.json and results/kv_cache.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from common.divergence import SEEDS, Judge, summarize
from common.machine import describe, provenance
from tabulate import tabulate

from vlpress.calib.samples.draw import load_samples
from vlpress.eval.fidelity.kv_ranges import kv_ranges
from vlpress.model.kv_quant.ranges import LayerRange
from vlpress.model.kv_quant.types import CacheType
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.loading import open_model, resolve_folder
from vlpress.quant.driver.kv_calibration import CalibratedLayer
from vlpress.quant.resolve import encode_samples

HERE = Path(__file__).resolve().parent
CALIBRATION = 64
CACHES: tuple[tuple[str, CacheType, bool], ...] = (
    ("int8", "int8", False),
    ("int4", "int4", False),
    ("fp8", "fp8", False),
    ("fp8 calibrated", "fp8", True),
)
"""Name of a row, type of the cache, and whether its scales are calibrated."""


def calibration_ranges(model: QwenVL, name: str) -> list[LayerRange]:
    """Ranges of keys and values on calibration drawings."""
    processor = Processor.from_folder(resolve_folder(name))
    prompts = encode_samples(load_samples(None, n=CALIBRATION, seed=0), processor)
    with torch.inference_mode():
        features = [model.encode(prompt.visuals) for prompt in prompts]
    return kv_ranges(model, prompts, features)


def measure(name: str, samples: int) -> dict[str, Any]:
    """Measure all caches of one model."""
    judge = Judge(name, SEEDS["held_out"], samples)
    model = open_model(name, device="cpu", dtype="fp32")
    ranges = calibration_ranges(model, name)
    rows = []
    for row, kind, is_calibrated in CACHES:
        scales = [CalibratedLayer.of(of_layer).scales for of_layer in ranges]
        model.cache_type, model.cache_scales = kind, scales if is_calibrated else None
        rows.append({"cache": row, **summarize([judge.measure(model)])})
        print(name, row, f"{rows[-1]['kl_mean']:.2e}", flush=True)
    return {"rows": rows, "ranges": [of_layer.to_dict() for of_layer in ranges]}


def markdown(results: dict[str, Any]) -> str:
    """Format the results."""
    rows, ranges = [], []
    for name, model in results["models"].items():
        for row in model["rows"]:
            low, high = row["ci95"]
            kl = f"{1e4 * row['kl_mean']:.3g} [{1e4 * low:.3g}, {1e4 * high:.3g}]"
            rows.append([name, row["cache"], kl, f"{100 * row['top1_agreement']:.2f}"])
        worst = max(model["ranges"], key=lambda of_layer: of_layer["key_outlier_ratio"])
        ranges.append(
            [
                name,
                f"{worst['key_outlier_ratio']:.1f} (layer {worst['layer']})",
                f"{max(of_layer['key_max'] for of_layer in model['ranges']):.3g}",
                f"{max(of_layer['value_max'] for of_layer in model['ranges']):.3g}",
            ]
        )
    heads = ["model", "cache", "KL, 1e-4 nats", "same top token, %"]
    range_heads = ["model", "largest outlier ratio of keys", "largest key", "largest value"]
    return "\n".join(
        [
            "# Quantized KV caches (built-in models, drawings)",
            "",
            describe(results),
            "",
            f"KL(float cache || quantized cache) per answer token on {results['samples']} held-out "
            "drawings, mean over drawings with its 95 % interval; float32, the weights of the "
            "model.",
            "",
            tabulate(rows, heads, tablefmt="github", disable_numparse=True),
            "",
            f"Ranges on {CALIBRATION} calibration drawings (docs/kv-cache.md):",
            "",
            tabulate(ranges, range_heads, tablefmt="github", disable_numparse=True),
            "",
        ]
    )


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["tiny", "tiny-outliers", "tiny3"])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "kv_cache.json")
    options = parser.parse_args()
    results: dict[str, Any] = {
        **provenance(),
        "samples": options.samples,
        "models": {name: measure(name, options.samples) for name in options.models},
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(markdown(results))


if __name__ == "__main__":
    main()
