"""Speed of quantized layers relative to torch's, at the widths of the 3B and 7B models.

    python benchmarks/kernel_speed.py [--rows 1 16 ...] [--sizes 2048x11008 ...] [--name kernels]

Runs `vlpress bench kernels` and compares the important ratios with their targets. Ratios are taken
within one run, because times are not reliable on a busy machine. With one row, a product reads all
weights; the table shows the ratio that a kernel at full memory bandwidth would reach, too. Writes
results/kernels.json and results/kernels.md, or files of another name for another processor.

On a processor with AVX-512, these variables limit all kernels in the comparison to AVX2:

    VLPRESS_KERNEL=avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=avx2 \
        MKL_ENABLE_INSTRUCTIONS=AVX2 python benchmarks/kernel_speed.py --name kernels-avx2
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.machine import describe, provenance
from tabulate import tabulate

from vlpress.bench.kernel_speed import ROWS, SHAPES
from vlpress.bench.run import bench_kernels
from vlpress.cli.console import kernels_table

HERE = Path(__file__).resolve().parent
# torch's bf16 products are slower than its float32 ones on processors without bf16 units.
TORCH = ("torch bf16", "torch float32")
# Levels of a table relative to integers of as many bits.
TABLES = (
    ("fp8", ("w8a16",), (1,), 0.7),
    ("fp8-block", ("w8a16",), (1,), 0.7),
    ("nvfp4", ("w4a16",), (1,), 0.7),
    ("mxfp4", ("w4a16",), (1,), 0.7),
)
# Layer, compared with the fastest of these, at these numbers of rows: smallest ratio of speeds.
TARGETS_AVX512 = (
    ("w4a16", ("torch int4pack",), (1,), 1.8),
    ("w4a16", TORCH, (256, 1024), 0.95),
    ("w4a16", ("torch int4pack",), (256, 1024), 2.5),
    ("w8a8", ("torch int8",), (256, 1024), 0.85),
    ("w8a8", TORCH, (256, 1024), 1.5),
    ("w4a8", TORCH, (256, 1024), 1.4),
    *TABLES,
)
TARGETS_AVX2 = (
    ("w4a16", TORCH, (256, 1024), 1.0),
    ("w8a8", TORCH, (256, 1024), 1.8),
    *TABLES,
)
Targets = tuple[tuple[str, tuple[str, ...], tuple[int, ...], float], ...]
TARGETS: dict[str, Targets] = {"avx2": TARGETS_AVX2}
"""By kernels, for those that differ from `TARGETS_AVX512`."""
BANDWIDTH_AVX512 = (("w4a16", 0.75), ("w8a16", 0.75), ("w8a8", 0.75))
BANDWIDTH = {"avx2": (("w4a16", 0.9), ("w8a16", 0.9), ("w4a8", 0.9))}
"""Smallest share of the measured read bandwidth with one row, by kernels."""


def main() -> None:
    """Measure, then write the two result files."""
    options = parse()
    results = provenance() | bench_kernels(options.sizes, options.rows)
    results["targets"] = list(targets(results))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / f"{options.name}.md").write_text(markdown(results))
    print(markdown(results))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    usual = [f"{k}x{n}" for k, n in SHAPES]
    parser.add_argument("--sizes", nargs="+", default=usual, help="in_features x out_features")
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS), help="tokens at a time")
    parser.add_argument("--name", default="kernels", help="of the result files")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    return parser.parse_args()


def targets(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Targets and measured ratios, the worst over shapes and rows."""
    measurements = {(shape(r), r["rows"], r["kind"]): r for r in results["rows"]}
    shapes = dict.fromkeys(shape(r) for r in results["rows"])
    rows = []
    kernels = results["machine"]["kernels"]
    for kind, baselines, counts, least in TARGETS.get(kernels, TARGETS_AVX512):
        pairs = [
            (fastest(measurements[s, m, name] for name in baselines), measurements[s, m, kind])
            for s in shapes
            for m in counts
            if (s, m, kind) in measurements
        ]
        if pairs:
            measured = [m for m in counts if any(row["rows"] == m for row in results["rows"])]
            where = "1 row" if counts == (1,) else f"{', '.join(map(str, measured))} rows"
            ratio = min(other["seconds"] / layer["seconds"] for other, layer in pairs)
            row = target(f"{kind} relative to {' or '.join(baselines)}, {where}", least, ratio)
            if counts == (1,):
                row["at_bandwidth"] = min(
                    other["seconds"] / reading(layer) for other, layer in pairs
                )
            rows.append(row)
    for kind, least in BANDWIDTH.get(kernels, BANDWIDTH_AVX512):
        layers = [measurements[s, 1, kind] for s in shapes if (s, 1, kind) in measurements]
        shares = [layer["bandwidth_share"] for layer in layers]
        if shares:
            rows.append(target(f"{kind}, 1 row: share of read bandwidth", least, min(shares)))
    return rows


def fastest(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The fastest of several layers."""
    return min(rows, key=lambda row: row["seconds"])


def reading(row: Mapping[str, Any]) -> float:
    """Seconds to read a layer's weights at the measured bandwidth."""
    return float(row["bytes"] / row["bandwidth"])


def shape(row: Mapping[str, Any]) -> tuple[int, int]:
    """Input and output features of a measured layer."""
    return row["in_features"], row["out_features"]


def target(what: str, least: float, ratio: float) -> dict[str, Any]:
    """One line of the second table."""
    return {"what": what, "least": least, "found": ratio, "met": ratio >= least}


def markdown(results: Mapping[str, Any]) -> str:
    """Results as Markdown."""
    body = [
        [
            row["what"],
            f"{row['least']:.2f}",
            f"{row['found']:.2f}",
            "yes" if row["met"] else "no",
            f"{row['at_bandwidth']:.2f}" if "at_bandwidth" in row else "",
        ]
        for row in results["targets"]
    ]
    head = ["", "at least", "smallest found", "met", "at the speed of memory"]
    table = tabulate(body, head, tablefmt="github")
    return (
        f"# Quantized layers\n\n{describe(dict(results))}\n\n"
        "Median of interleaved rounds, weights cycled through 512 MiB of distinct copies. "
        "torch int8 is the product of integers alone; the others include everything.\n\n"
        f"{table}\n\n```\n{kernels_table(results)}\n```\n"
    )


if __name__ == "__main__":
    main()
