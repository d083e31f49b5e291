"""Speed of quantized layers on a GPU against targets, and a run of each built-in model there.

    python benchmarks/gpu_speed.py [--device cuda] [--models tiny tiny3 tiny3.5] [--no-runs]

Runs `vlpress bench kernels --device cuda` and compares the ratios with their targets, on the shapes
of the 7B model, then `vlpress run MODEL --device cuda` for the built-in models. Needs a CUDA
device. Writes results/gpu_speed.json and results/gpu_speed.md. `make gpu` runs it after the tests
that need a GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.machine import describe, provenance
from tabulate import tabulate

from vlpress.bench.run import bench_kernels
from vlpress.cli.console import kernels_table

HERE = Path(__file__).resolve().parent
MODELS = ("tiny", "tiny3", "tiny3.5")
SIZES = ("3584x18944", "18944x3584")
ROWS = (1, 16, 64, 1024, 4096)
DECODE, PROMPT = (1, 16), (1024, 4096)
COPY_SHARE = 0.7
"""Smallest share of the copy bandwidth of w4a16 with few tokens."""
# Kind, number of rows, smallest speed relative to torch's bf16.
TARGETS = (("w4a16", PROMPT, 0.6), ("w8a8", PROMPT, 1.3), ("fp8", PROMPT, 1.3))


def main() -> None:
    """Measure, and write the result files."""
    options = parse()
    kernels = bench_kernels(SIZES, ROWS, options.device)
    results = provenance(options.device) | {"kernels": kernels, "targets": targets(kernels)}
    if not options.no_runs:
        results["runs"] = {name: run(name, options.device) for name in options.models}
    stored = HERE / "results" / "gpu_speed.json"
    stored.write_text(json.dumps(results, indent=1) + "\n")
    stored.with_suffix(".md").write_text(markdown(results))
    print(markdown(results))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--no-runs", action="store_true", help="time layers only")
    return parser.parse_args()


def targets(kernels: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Targets and measured values, the worst over shapes and rows."""
    by_key = {_key(row): row for row in kernels["rows"]}
    shares = [
        row["bandwidth_share"]
        for row in kernels["rows"]
        if row["kind"] == "w4a16" and row["rows"] in DECODE
    ]
    lines = [_target("w4a16, 1 and 16 rows: share of copy bandwidth", COPY_SHARE, min(shares))]
    for kind, counts, least in TARGETS:
        ratios = [
            by_key[(*key[:3], "torch bf16")]["seconds"] / row["seconds"]
            for key, row in by_key.items()
            if row["kind"] == kind and row["rows"] in counts
        ]
        name = f"{kind} relative to torch bf16, {' and '.join(map(str, counts))} rows"
        lines.append(_target(name, least, min(ratios)))
    return lines


def _key(row: Mapping[str, Any]) -> tuple[int, int, int, str]:
    return row["in_features"], row["out_features"], row["rows"], row["kind"]


def _target(name: str, least: float, value: float) -> dict[str, Any]:
    return {"name": name, "least": least, "smallest": value, "met": value >= least}


def run(model: str, device: str) -> dict[str, Any]:
    """Quantize and evaluate a built-in model on the device; returns its verdict and scores."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "vlpress", "run", model, "--device", device]
        subprocess.run([*command, "--recipe", "w4a16", "-o", f"{folder}/out"], check=True)
        report = json.loads((Path(folder) / "out" / "report.json").read_text())
    scores = {
        name: {key: entry[key] for key in ("base", "candidate", "n")}
        for name, entry in report["benchmarks"].items()
    }
    return {"verdict": report["verdict"], "benchmarks": scores}


def markdown(results: Mapping[str, Any]) -> str:
    """Results as Markdown."""
    body = [
        [
            row["name"],
            f"{row['least']:.2f}",
            f"{row['smallest']:.2f}",
            "yes" if row["met"] else "no",
        ]
        for row in results["targets"]
    ]
    lines = [
        "# Quantized layers on a GPU",
        "",
        describe(dict(results)),
        "",
        tabulate(body, ["", "at least", "smallest measured", "met"], tablefmt="github"),
        "",
        f"```\n{kernels_table(results['kernels'])}\n```",
    ]
    for name, outcome in results.get("runs", {}).items():
        scores = ", ".join(
            f"{benchmark} {entry['base']:.1f} to {entry['candidate']:.1f} %"
            for benchmark, entry in outcome["benchmarks"].items()
        )
        lines += ["", f"`vlpress run {name} --recipe w4a16`: {outcome['verdict']}; {scores}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
