"""Time from a command to its first output, its refusal or its plan.

    python benchmarks/startup.py [--repeats 5]

Each command runs in a new process. `plan` runs with an empty cache folder (VLPRESS_CACHE) and then
again with what the first call stored; both must print the same plan but for the estimated times.
`run` is stopped as soon as its first line and then its first progress of the quantization have been
read from standard error. `import torch` in a process of its own is the part that vlpress cannot
save. Writes results/startup.json and results/startup.md with medians and ranges.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from common.machine import describe, provenance
from tabulate import tabulate

from vlpress.quant.job import QUANTIZING

HERE = Path(__file__).resolve().parent
VLPRESS = [sys.executable, "-m", "vlpress"]
TORCH, FIRST, AGAIN = "python -c 'import torch'", "plan tiny, first time", "plan tiny, again"
LINE, PROGRESS = "run tiny, first line", "run tiny, first progress"
REFUSED = {
    "plan ./out/tniy (no such folder)": ["plan", "./out/tniy"],
    "plan tiny --recipe w4a16-aqw": ["plan", "tiny", "--recipe", "w4a16-aqw"],
    "eval tiny --bench builtin-mmbnch": ["eval", "tiny", "--bench", "builtin-mmbnch"],
}
VOLATILE = ("time", "rates", "estimate")
"""Parts of a plan that follow from the measured rates, or from the memory of the process."""


def main() -> None:
    """Measure, then write the two result files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    for _ in range(options.repeats):
        for name, value in measure().items():
            seconds.setdefault(name, []).append(value)
    results = provenance() | {"repeats": options.repeats, "seconds": seconds}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "startup.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "startup.md").write_text(markdown(results))
    print(markdown(results))


def measure() -> dict[str, float]:
    """Run every command once; return its seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        seconds = {TORCH: timed([sys.executable, "-c", "import torch"], folder)[0]}
        seconds["--help"] = timed([*VLPRESS, "--help"], folder)[0]
        for name, words in REFUSED.items():
            seconds[name], _ = timed([*VLPRESS, *words], folder, code=2)
        plan = [*VLPRESS, "plan", "tiny", "--json"]
        seconds[FIRST], first = timed(plan, folder)
        seconds[AGAIN], again = timed(plan, folder)
        assert fixed_part(first) == fixed_part(again)
        assert json.loads(again)["rates"]["is_cached"]
        seconds |= first_output(folder)
    return seconds


def timed(command: list[str], folder: Path, code: int = 0) -> tuple[float, str]:
    """Run a command with a cache below `folder`; return its seconds and its standard output."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment(folder))
    seconds = time.perf_counter() - started
    assert done.returncode == code, done.stderr
    return seconds, done.stdout


def first_output(folder: Path) -> dict[str, float]:
    """Start `run`; return the seconds until its first line and its first progress."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [*VLPRESS, "run", "tiny", "-o", str(folder / "out")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(folder),
    )
    seconds: dict[str, float] = {}
    assert process.stderr is not None
    for line in process.stderr:
        seconds.setdefault(LINE, time.perf_counter() - started)
        if line.startswith(f"{QUANTIZING}: "):
            seconds[PROGRESS] = time.perf_counter() - started
            break
    process.terminate()
    process.communicate()
    assert PROGRESS in seconds
    return seconds


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a command."""
    return os.environ | {"VLPRESS_CACHE": str(folder / "cache")}


def fixed_part(plan: str) -> dict[str, Any]:
    """Return the part of a plan that does not depend on the machine's speed."""
    return {key: value for key, value in json.loads(plan).items() if key not in VOLATILE}


def markdown(results: dict[str, Any]) -> str:
    """Format the results as a page."""
    rows = [
        [name, f"{median(values):.2f}", f"{min(values):.2f} - {max(values):.2f}"]
        for name, values in results["seconds"].items()
    ]
    return "\n".join(
        [
            "# Start of a command",
            "",
            describe(results),
            "",
            f"Seconds in a new process, median of {results['repeats']} and range. The first time, "
            "the cache is empty;",
            "`run` follows the second plan. Refused commands exit with code 2.",
            "",
            tabulate(rows, ["command", "seconds", "range"], tablefmt="github"),
            "",
        ]
    )


if __name__ == "__main__":
    main()
