"""Quantized layers beside torch's own, at the widths of the 3B and 7B models.

    python benchmarks/kernel_speed.py [--rows 1 16 ...] [--sizes 2048x11008 ...] [--name kernels]

What `vlpress bench kernels` measures, with the ratios that matter and what they should be. Times
mean little on a busy machine; ratios are taken within one run. One row reads all weights for one
product: beside its ratio stands what a kernel would reach that reads them as fast as memory gives
them. Writes results/kernels.json and results/kernels.md beside this script, or files of another
name for another kind of processor.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.machine import describe, provenance
from tabulate import tabulate

from vlpress.bench.kernel_speed import ROWS, SHAPES
from vlpress.bench.run import bench_kernels
from vlpress.cli.console import kernels_table

HERE = Path(__file__).resolve().parent
# Layer, beside what, at which numbers of rows: at least how many times as fast.
TARGETS = (
    ("w4a16", "torch int4pack", (1,), 1.8),
    ("w4a16", "torch bf16", (256, 1024), 0.95),
    ("w4a16", "torch int4pack", (256, 1024), 2.5),
    ("w8a8", "torch int8", (256, 1024), 0.85),
    ("w8a8", "torch bf16", (256, 1024), 1.5),
    ("w4a8", "torch bf16", (256, 1024), 1.4),
)
BANDWIDTH = (("w4a16", 0.75), ("w8a16", 0.75), ("w8a8", 0.75))
"""Share of the measured read bandwidth, one row."""


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
    """What was wanted and what was found, worst case over shapes and rows."""
    rows = {(shape(r), r["rows"], r["kind"]): r for r in results["rows"]}
    shapes = dict.fromkeys(shape(r) for r in results["rows"])
    found = []
    for kind, beside, counts, least in TARGETS:
        pairs = [
            (rows[s, m, beside], rows[s, m, kind])
            for s in shapes
            for m in counts
            if (s, m, kind) in rows
        ]
        if pairs:
            measured = [m for m in counts if any(row["rows"] == m for row in results["rows"])]
            where = "1 row" if counts == (1,) else f"{', '.join(map(str, measured))} rows"
            ratio = min(other["seconds"] / ours["seconds"] for other, ours in pairs)
            row = target(f"{kind} beside {beside}, {where}", least, ratio)
            if counts == (1,):
                row["at_bandwidth"] = min(other["seconds"] / reading(ours) for other, ours in pairs)
            found.append(row)
    for kind, least in BANDWIDTH:
        shares = [rows[s, 1, kind]["bandwidth_share"] for s in shapes if (s, 1, kind) in rows]
        if shares:
            found.append(target(f"{kind}, 1 row: share of read bandwidth", least, min(shares)))
    return found


def reading(row: Mapping[str, Any]) -> float:
    """Seconds in which memory gives a layer's weights."""
    return float(row["bytes"] / row["bandwidth"])


def shape(row: Mapping[str, Any]) -> tuple[int, int]:
    """Inputs and outputs of a measured layer."""
    return row["in_features"], row["out_features"]


def target(what: str, least: float, found: float) -> dict[str, Any]:
    """One line of the second table."""
    return {"what": what, "least": least, "found": found, "met": found >= least}


def markdown(results: Mapping[str, Any]) -> str:
    """The results as a page."""
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
    wanted = tabulate(body, head, tablefmt="github")
    return (
        f"# Quantized layers\n\n{describe(dict(results))}\n\n"
        "Median of interleaved rounds, weights cycled through 512 MiB of distinct copies. "
        "torch int8 is the product of integers alone; the others include everything.\n\n"
        f"{wanted}\n\n```\n{kernels_table(results)}\n```\n"
    )


if __name__ == "__main__":
    main()
