"""Effect of other processes on the speed of `vlpress eval` and of one layer at one token.

    python benchmarks/busy_machine.py [--busy 0 1 2] [--repeats 3] [--timeout 120]

Evaluates 128 built-in questions with the built-in model in bf16 and with its w4a16 checkpoint, in a
separate process each time, while 0, 1 or 2 other processes compute without pause, and reports the
median seconds of answering, without loading. `spinning` uses the OpenMP runtime's default waiting
policy instead of the bounded one of vlpress (src/vlpress/common/threads.py); both run in turns.
All runs must give the same answers. Writes results/busy_machine.json and
results/busy_machine.md, or files of another --name.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from common.machine import describe, provenance
from tabulate import tabulate

from vlpress.common.threads import GNU_SPINS, LLVM_BLOCKTIME

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BENCHES = ["--bench", "builtin-mmbench", "--bench", "builtin-ocrbench", "--limit", "64"]
SPINNING = {GNU_SPINS: "300000", LLVM_BLOCKTIME: "200"}
"""The runtimes' defaults, set explicitly because vlpress replaces unset variables."""
POLICIES: dict[str, dict[str, str]] = {"bounded": {}, "spinning": SPINNING}
CELL = tuple[str, int, str]  # model, busy processes, policy


def main() -> None:
    """Measure, then write the two result files."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        quantized = Path(folder) / "w4a16"
        vlpress(["quantize", "tiny", "-o", str(quantized), "--recipe", "w4a16"])
        models = {"bf16": "tiny", "w4a16": str(quantized)}
        cells: dict[CELL, list[float]] = {}
        answers: dict[str, set[str]] = {name: set() for name in models}
        for _ in range(options.repeats):
            for busy in options.busy:
                for name, policy in [(n, p) for n in models for p in POLICIES]:
                    with busy_processes(busy):
                        seconds, text = evaluate(models[name], POLICIES[policy], options.timeout)
                    cells.setdefault((name, busy, policy), []).append(seconds)
                    answers[name].add(text)
                    print(f"{name}, {busy} busy, {policy}: {seconds:.1f} s", flush=True)
        layers = {
            (busy, policy): kernels(busy, POLICIES[policy], options.timeout)
            for busy in options.busy
            for policy in POLICIES
        }
    for name, distinct in answers.items():
        complete = distinct - {""}
        if len(complete) > 1:
            sys.exit(f"{name}: answers differ between the runs")
    results = provenance() | {
        "repeats": options.repeats,
        "timeout": options.timeout,
        "eval": [
            {"model": m, "busy": b, "policy": p, "seconds": s, "median": median(s)}
            for (m, b, p), s in cells.items()
        ],
        "layers": [
            {"busy": b, "policy": p, "milliseconds": milliseconds}
            for (b, p), milliseconds in layers.items()
        ],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / f"{options.name}.md").write_text(markdown(results))
    print(markdown(results))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one run")
    parser.add_argument("--name", default="busy_machine", help="of the result files")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    return parser.parse_args()


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run other processes that compute without pause, with one thread each."""
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def vlpress(arguments: Sequence[str], **environment: str) -> str:
    """Run the command line; returns its standard output."""
    command = [sys.executable, "-m", "vlpress", *arguments]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def evaluate(model: str, environment: dict[str, str], timeout: float) -> tuple[float, str]:
    """Seconds of answering, and all answers as one text; (timeout, "") after the timeout."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "vlpress", "eval", model, "-o", folder, *BENCHES]
        environ = os.environ | environment
        try:
            subprocess.run(command, env=environ, capture_output=True, timeout=timeout, check=True)
        except subprocess.TimeoutExpired:
            return timeout, ""
        load = json.loads((Path(folder) / "run.json").read_text())["load"]
        lines = [
            json.loads(line)
            for path in sorted(Path(folder).glob("*/predictions.jsonl"))
            for line in path.read_text().splitlines()[1:]
        ]
        return load["seconds"], json.dumps(sorted((r["id"], r["prediction"]) for r in lines))


def kernels(busy: int, environment: dict[str, str], timeout: float) -> dict[str, float] | None:
    """Milliseconds by kind of a layer of the 3B model at one token; None after the timeout."""
    command = [sys.executable, "-m", "vlpress", "bench", "kernels", "--json"]
    command += ["--size", "2048x11008", "--rows", "1"]
    with busy_processes(busy):
        environ = os.environ | environment
        try:
            done = subprocess.run(
                command, env=environ, capture_output=True, timeout=timeout, check=True, text=True
            )
        except subprocess.TimeoutExpired:
            return None
    return {row["kind"]: 1e3 * row["seconds"] for row in json.loads(done.stdout)["rows"]}


def markdown(results: dict[str, Any]) -> str:
    """Results as Markdown tables."""
    rows: dict[tuple[str, int], dict[str, str]] = {}
    for cell in results["eval"]:
        seconds, limit = cell["median"], results["timeout"]
        text = f"over {limit:.0f}" if seconds >= limit else f"{seconds:.1f}"
        rows.setdefault((cell["model"], cell["busy"]), {})[cell["policy"]] = text
    answering = tabulate(
        [[model, busy, *(row[p] for p in POLICIES)] for (model, busy), row in rows.items()],
        ["model", "other processes", *POLICIES],
        tablefmt="github",
    )
    kinds = results["layers"][0]["milliseconds"]
    layers = tabulate(
        [
            [cell["busy"], cell["policy"], *((cell["milliseconds"] or {}).get(k) for k in kinds)]
            for cell in results["layers"]
        ],
        ["other processes", "threads wait", *kinds],
        tablefmt="github",
        floatfmt=".2f",
        missingval="timeout",
    )
    return (
        f"# Speed with other processes on the machine\n\n{describe(results)}\n\n"
        "Seconds to answer 128 built-in questions with the built-in model, median of "
        f"{results['repeats']} runs, while other processes compute without pause. *bounded*: idle "
        "threads spin for microseconds, as vlpress sets it; *spinning*: as long as the OpenMP "
        f"runtime's default.\n\n{answering}\n\n"
        f"Milliseconds of a layer of 2048 x 11008 at one token:\n\n{layers}\n"
    )


if __name__ == "__main__":
    main()
