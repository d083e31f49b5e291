"""Time of GPTAQ's calibration and solver against GPTQ's, on windows of random tokens.

    python benchmarks/gptaq_speed.py [--layers 3] [--windows 32] [--repeats 3]

The model has the widths of a published one of 135M parameters (hidden 576, MLP 1536), random
weights and few layers; the vision tower is not run. Methods alternate. Each run also measures how
far the quantized decoder is from the float one on the calibration windows, where GPTAQ has to be
closer. Updates results/gptaq_speed.json and results/gptaq_speed.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import make_model
import torch
from common.machine import describe, provenance
from tabulate import tabulate
from torch import Tensor

from vlpress.model.processing.inputs import Prompt
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.loading import open_model
from vlpress.quant.driver.pipeline import quantize_
from vlpress.quant.recipe.recipe import Recipe

HERE = Path(__file__).resolve().parent
METHODS = ("gptq", "gptaq")
GROUP = 64
"""Group size; 576 does not divide into groups of 128."""


def main() -> None:
    """Measure, and write the result files."""
    options = parse()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        folder.mkdir()
        raw = make_model.config_of("qwen2_5", "135m", options.layers, vision_layers=1)
        make_model.write(raw, folder, seed=0)
        windows = sample(options.windows, options.length, raw["vocab_size"])
        row = measure(folder, windows, options)
    stored = HERE / "results" / "gptaq_speed.json"
    rows = json.loads(stored.read_text())["rows"] if stored.is_file() else []
    same = ("dtype", "layers", "windows", "length")
    rows = [other for other in rows if any(other[key] != row[key] for key in same)] + [row]
    results = provenance() | {"rows": sorted(rows, key=lambda r: [str(r[key]) for key in same])}
    stored.write_text(json.dumps(results, indent=1) + "\n")
    stored.with_suffix(".md").write_text(markdown(results))
    print(markdown(results))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=3, help="of the decoder")
    parser.add_argument("--windows", type=int, default=32, help="calibration samples")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def sample(count: int, length: int, vocabulary: int) -> list[Prompt]:
    """Draw prompts of random tokens, without images."""
    ids = torch.randint(0, 1000, (count, length), generator=torch.Generator().manual_seed(0))
    assert vocabulary > 1000  # the tokens after these have a meaning
    return [Prompt(row, torch.arange(length).expand(3, -1)) for row in ids]


def measure(folder: Path, prompts: Sequence[Prompt], options: argparse.Namespace) -> dict[str, Any]:
    """Time both methods in alternation."""
    dtype = options.dtype
    expected = hidden_states(open_model(folder, device="cpu", dtype=dtype), prompts[:4])
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    errors: dict[str, float] = {}
    for _ in range(options.repeats):
        for method in METHODS:
            model = open_model(folder, device="cpu", dtype=dtype)
            step = {"method": method, "bits": 4, "group_size": GROUP}
            start = time.perf_counter()
            quantize_(model, Recipe.from_dict({"step": [step]}), prompts)
            seconds[method].append(time.perf_counter() - start)
            actual = hidden_states(model, prompts[:4])
            errors[method] = float((actual - expected).norm() / expected.norm())
    if not 0 < errors["gptaq"] < errors["gptq"]:
        sys.exit(f"GPTAQ is not closer to the float model: {errors}")
    ratios = [b / a for a, b in zip(seconds["gptq"], seconds["gptaq"], strict=True)]
    return {
        "dtype": dtype,
        "layers": options.layers,
        "windows": options.windows,
        "length": options.length,
        "seconds": seconds,
        "ratio": median(ratios),
        "errors": errors,
    }


@torch.inference_mode()
def hidden_states(model: QwenVL, prompts: Sequence[Prompt]) -> Tensor:
    """Compute the decoder's output for prompts without images, float32."""
    batches = [model.embed([prompt], [()]) for prompt in prompts]
    return torch.cat([model.model(b.embeds, b.position_ids)[0] for b in batches]).float()


def markdown(results: dict[str, Any]) -> str:
    """Table of the results."""
    body = [
        [
            row["dtype"],
            str(row["layers"]),
            f"{row['windows']} x {row['length']}",
            *(f"{median(row['seconds'][method]):.1f}" for method in METHODS),
            f"{row['ratio']:.2f}",
            *(f"{row['errors'][method]:.4f}" for method in METHODS),
        ]
        for row in results["rows"]
    ]
    head = ["dtype", "layers", "tokens", "GPTQ, s", "GPTAQ, s", "ratio", "error, GPTQ", "GPTAQ"]
    table = tabulate(body, head, tablefmt="github", disable_numparse=True)
    return (
        f"# Time of GPTAQ against GPTQ\n\n{describe(results)}\n\nDecoder layers of hidden size 576 "
        f"and MLP size 1536 with random weights, int4 in groups of {GROUP}; calibration and solver "
        "in\nmemory, medians of runs in alternation. Errors are those of the hidden states on "
        "calibration windows, relative to\nthe float model's. For 30 layers GPTAQ takes slightly "
        f"more: the last layer's float output is not needed.\n\n{table}\n"
    )


if __name__ == "__main__":
    main()
