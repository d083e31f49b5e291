"""Machine code of the Triton kernels for GPUs that are not present.

    TRITON_INTERPRET=0 python benchmarks/gpu_code.py [--targets 80 90 100] [--only w4a16]

Compiles every kernel in its tuned shapes for sm_80, sm_90 and sm_100, and lists the width of its
loads, asynchronous copies, tensor-core instructions, registers, shared memory and spills, with an
estimate of its share of the roofline (`machine_code/roofline.py`). Nothing runs on a GPU. Writes
results/gpu_code.json and results/gpu_code.md; rows of the kernels that these replaced are kept in
results/gpu_code_before.json.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.machine import describe, provenance
from machine_code.roofline import GPUS, Step, memory_share, product_share, resident
from tabulate import tabulate

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
HEAD = (
    "kernel", "tokens", "target", "loads", "copies", "tensor cores", "registers", "shared KiB",
    "spilled bytes", "programs", "loop", "share",
)  # fmt: skip


def main() -> None:
    """Compile, and write the result files."""
    options = parse()
    rows = [row for capability in options.targets for row in inspect(capability, options.only)]
    import triton

    results = provenance() | {"triton": triton.__version__, "rows": rows}
    before = RESULTS / "gpu_code_before.json"
    if before.exists():
        results["before"] = json.loads(before.read_text())
    if not options.only:
        stored = RESULTS / "gpu_code.json"
        stored.write_text(json.dumps(results, indent=1) + "\n")
        stored.with_suffix(".md").write_text(markdown(results))
    print(markdown(results))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--targets", nargs="+", type=int, choices=tuple(GPUS), default=list(GPUS))
    parser.add_argument("--only", nargs="+", help="names of kernels; result files stay as they are")
    return parser.parse_args()


def inspect(capability: int, only: Iterable[str] | None = None) -> Iterable[dict[str, Any]]:
    """Compile the kernels for one target, and yield a row for each."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("TRITON_INTERPRET is 1; set it to 0: the interpreter compiles nothing")
    from machine_code.cases import cases
    from machine_code.inspection import compile_launch

    for case in cases(capability):
        if only is None or case.name in only:
            yield row_of(case, compile_launch(case.launch, capability), capability)


def row_of(case: Any, code: Any, capability: int) -> dict[str, Any]:
    """Facts and estimates of a compiled kernel."""
    gpu = GPUS[capability]
    warps = case.launch.keywords["num_warps"]
    programs = resident(gpu, code.registers, code.shared, warps)
    row = {
        "kernel": case.name,
        "tokens": case.tokens,
        "target": f"sm_{capability}",
        "product": case.product,
        "loads": dict(code.loads),
        "copies": dict(code.copies),
        "bulk_copies": code.bulk_copies,
        "products": dict(code.products),
        "registers": code.registers,
        "warps": warps,
        "shared": code.shared,
        "tensor_memory": code.tensor_memory,
        "spilled": code.spilled,
        "programs_per_multiprocessor": programs,
        "loop": dict(code.loop),
    }
    if case.blocks is not None and programs:
        step = Step(
            case.blocks.n * case.tile * case.weight_bits / 8,
            case.blocks.m * case.tile * (2 if case.product == "bf16" else 1),
            2 * case.blocks.m * case.blocks.n * case.tile,
            code.loop.total(),
            warps,
            case.blocks.stages,
            case.product,
        )
        row["bound"] = "tensor cores" if case.blocks.persistent else "memory"
        row["share"] = (
            product_share(gpu, step)
            if case.blocks.persistent
            else memory_share(gpu, step, programs)
        )
    return row


def markdown(results: Mapping[str, Any]) -> str:
    """Results as Markdown."""
    lines = [
        "# Machine code of the Triton kernels",
        "",
        f"{describe(dict(results))} Triton {results['triton']}. Compiled and inspected, not run.",
        "",
        "Loads and copies: bytes per thread x instructions in the code. Programs: those that fit "
        "on a multiprocessor. Loop: instructions of one warp per step of the main loop. Share: "
        "upper bound of the share of memory bandwidth (up to 64 tokens) or of the tensor cores' "
        "dense rate, from published rates (benchmarks/machine_code/roofline.py).",
        "",
        table(results["rows"]),
    ]
    if "before" in results:
        before = results["before"]
        lines += [
            "",
            f"## Before (commit {before['commit']})",
            "",
            "The kernels that these replaced, compiled in the same way.",
            "",
            table(before["rows"]),
        ]
    return "\n".join(lines) + "\n"


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """One line per kernel, shape and target."""
    return tabulate([_cells(row) for row in rows], HEAD, tablefmt="github")


def _cells(row: Mapping[str, Any]) -> list[object]:
    share = f"{100 * row['share']:.0f} % of {row['bound']}" if "share" in row else ""
    copies = _widths(row["copies"]) or ("TMA" if row["bulk_copies"] else "none")
    return [
        row["kernel"],
        row["tokens"],
        row["target"],
        _widths(row["loads"]),
        copies,
        ", ".join(sorted(row["products"])),
        row["registers"],
        f"{row['shared'] / 1024:.1f}",
        row["spilled"],
        row["programs_per_multiprocessor"],
        sum(row["loop"].values()),
        share,
    ]


def _widths(counts: Mapping[Any, int]) -> str:
    ordered = sorted(Counter(dict(counts)).items(), key=lambda item: -int(item[0]))
    return ", ".join(f"{width} x {count}" for width, count in ordered)


if __name__ == "__main__":
    main()
