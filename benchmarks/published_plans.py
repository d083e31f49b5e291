"""Memory, bytes and time of quantizing the published sizes of Qwen3-VL and Qwen3.5, by `plan`.

    python benchmarks/published_plans.py [--size 30b-a3b ...]

Nothing is loaded or quantized: only the config files are needed. The recipe is the preset w4a16,
the samples are 128 of 400 tokens, all from images. Times are for the machine that runs the script,
by its cached rates (`vlpress plan --refresh` measures them again), or `--stored-rates`: those of
the results, for their machine. Adds to results/published_plans.json and rewrites
results/published_plans.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from common import qwen3_configs, qwen35_configs
from common.machine import describe, provenance
from tabulate import tabulate

from vlpress.common.progress import format_seconds, peak_memory
from vlpress.model.config import ModelConfig
from vlpress.quant.config import CalibrationOptions
from vlpress.quant.plan.experts import expected_tokens
from vlpress.quant.plan.plan import make_plan
from vlpress.quant.plan.time_estimate import Probe, cached_probe, estimate_time
from vlpress.quant.recipe.recipe import Recipe

STORED = Path(__file__).resolve().parent / "results" / "published_plans.json"
RECIPE = "w4a16"
SAMPLES, LENGTH = 128, 400
GIB = 2**30
SIZES = {
    **{size: (qwen3_configs.config_of, size) for size in qwen3_configs.SIZES},
    **{f"3.5-{size}": (qwen35_configs.config_of, size) for size in qwen35_configs.SIZES},
}
"""Function and name of the config.json, by name in the table."""
LIMITS = {"30b-a3b": 8 * GIB, "235b-a22b": 16 * GIB}
"""Largest peak memory by size."""


def main() -> None:
    """Plan the selected sizes and write the result files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--stored-rates", action="store_true", help="rates of the last results")
    options = parser.parse_args()
    rows = json.loads(STORED.read_text())["rows"] if STORED.is_file() else {}
    process = peak_memory()
    for size in options.size:
        origin, rates = provenance(), None
        if options.stored_rates:
            origin["machine"], rates = rows[size]["machine"], Probe(**rows[size]["rates"])
        rows[size] = origin | plan(size, process, rates)
        ordered = {name: rows[name] for name in SIZES if name in rows}
        STORED.write_text(json.dumps({"rows": ordered}, indent=1) + "\n")
        STORED.with_suffix(".md").write_text(markdown(ordered))
        if (peak := rows[size]["peak_bytes"]) > LIMITS.get(size, peak):
            raise SystemExit(f"{size}: {peak} bytes; allowed: {LIMITS[size]}")
    print(STORED.with_suffix(".md").read_text())


def plan(size: str, process: int, rates: Probe | None) -> dict[str, Any]:
    """Plan one size.

    Args:
        size: its name.
        process: bytes of Python and its libraries.
        rates: of the machine; None takes the cached ones.
    """
    recipe, (config_of, name) = Recipe.resolve(RECIPE), SIZES[size]
    made = make_plan(ModelConfig.from_dict(config_of(name)), recipe, dtype=torch.bfloat16)
    rates = rates or cached_probe(torch.device("cpu"), torch.bfloat16)[0]
    solve, per_token = estimate_time(
        made, rates, true_sequential=recipe.calibration.true_sequential
    )
    tokens, cache = SAMPLES * LENGTH, CalibrationOptions().cache_bytes
    return {
        "layers": len(made.quantized),
        "base_bytes": made.base_bytes,
        "candidate_bytes": made.candidate_bytes,
        "bits_per_weight": made.bits_per_weight,
        "peak_bytes": process + made.memory.peak(tokens, LENGTH, cache),
        "memory": made.memory.to_dict(),
        "scratch_bytes": made.memory.scratch(tokens) + made.packed_bytes,
        "solve_seconds": solve,
        "pass_seconds": per_token * tokens,
        "rates": asdict(rates),
        "experts": expected_tokens(made.rows, tokens),
    }


def markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the results."""
    body = [
        [
            size,
            f"{row['layers']:,}",
            f"{row['base_bytes'] / 1e9:.1f}",
            f"{row['candidate_bytes'] / 1e9:.1f}",
            f"{row['peak_bytes'] / GIB:.1f}",
            f"{row['memory']['block'] / GIB:.2f}",
            f"{row['memory']['solve'] / GIB:.2f}",
            f"{row['scratch_bytes'] / 1e9:.1f}",
            format_seconds(row["solve_seconds"]),
            format_seconds(row["pass_seconds"]),
            f"{row['experts']['tokens']:.0f}" if row["experts"] else "",
        ]
        for size, row in rows.items()
    ]
    head = ["size", "quantized layers", "GB", "GB after", "peak GiB", "largest block GiB"]
    head += ["to solve GiB", "disk GB", "solving", "passes of samples", "tokens per expert"]
    origins = dict.fromkeys(describe(dict(row)) for row in rows.values())
    return (
        "# Plans of the published sizes of Qwen3-VL and Qwen3.5\n\n"
        + "\n".join(f"- {origin}" for origin in origins)
        + f"\n\nThe preset {RECIPE}, streamed from folder to folder, with {SAMPLES} samples of "
        f"{LENGTH} tokens; nothing was quantized. Times are those of the cached rates, in the JSON "
        "file: with other work on the machine these are low.\n\n"
        + tabulate(body, head, tablefmt="github", disable_numparse=True)
        + "\n"
    )


if __name__ == "__main__":
    main()
