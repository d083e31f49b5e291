"""Kills at random moments: a resumed run must produce the bytes of an uninterrupted one.

    python benchmarks/faults.py [--kills 50] [--seed 0]

Half of the kills (SIGKILL) hit `vlpress quantize`, half `vlpress eval`, on the built-in model. Each
job is killed at a random moment within the duration of an uninterrupted one, restarted, killed
again, and finally allowed to finish; then its folder is compared. Writes results/faults.json and
results/faults.md.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.machine import describe, provenance
from tabulate import tabulate

HERE = Path(__file__).resolve().parent
PER_JOB = 5  # kills before a job may finish
JOBS = {
    "quantize": ["--calib-samples", "8", "--recipe", "w4a16"],
    "eval": ["--bench", "builtin-mmbench", "--limit", "48", "--batch-size", "4"],
}
# An evaluation also stores durations: in separate files, and with each answer.
TIMED = ("run.json", "scores.json")
ANSWERS, TIMES = "predictions.jsonl", ("seconds", "seal")


def main() -> None:
    """Kill, resume, compare, and write the result files."""
    options = parse()
    draw = random.Random(options.seed)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for verb in JOBS:
            rows[verb] = torment(verb, Path(folder), options.kills // len(JOBS), draw)
    results = provenance() | {"seed": options.seed, "rows": rows}
    (HERE / "results" / "faults.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "results" / "faults.md").write_text(markdown(results))
    print(markdown(results))
    if any(row["identical"] < row["jobs"] for row in rows.values()):
        sys.exit("a job that was killed ended in other bytes")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def torment(verb: str, folder: Path, kills: int, draw: random.Random) -> dict[str, Any]:
    """Kill one verb this many times, over several jobs."""
    started = time.monotonic()
    subprocess.run(command(verb, folder / verb), check=True, capture_output=True)
    usual = time.monotonic() - started
    expected = contents(folder / verb)
    done = {"kills": 0, "too_late": 0, "jobs": 0, "identical": 0, "seconds": usual}
    while done["kills"] < kills:
        out = folder / f"{verb}-killed"
        for _ in range(min(PER_JOB, kills - int(done["kills"]))):
            # Each resume has less work left; a kill after the end of the job does not count.
            if kill(command(verb, out), draw.uniform(0.1, 0.9) * usual):
                done["kills"] += 1
            else:
                done["too_late"] += 1
                break
        subprocess.run(command(verb, out), check=True, capture_output=True)
        done["jobs"] += 1
        done["identical"] += contents(out) == expected
        leftover = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        if leftover:
            sys.exit(f"{leftover[0]} was left behind")
        shutil.rmtree(out)
    return done


def command(verb: str, out: Path) -> list[str]:
    """Command line of a job on the built-in model."""
    arguments = ["tiny", "--out", str(out), "--device", "cpu", "--json", *JOBS[verb]]
    return [sys.executable, "-m", "vlpress", verb, *arguments]


def kill(arguments: list[str], after: float) -> bool:
    """Start a command and kill it; False if it finished before."""
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} ended with {process.returncode}")
    return False


def contents(folder: Path) -> dict[str, bytes]:
    """Contents of every file below a folder, without durations."""
    return {
        str(path.relative_to(folder)): timeless(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in TIMED
    }


def timeless(path: Path) -> bytes:
    """Bytes of a file; answers without their durations."""
    if path.name != ANSWERS:
        return path.read_bytes()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return json.dumps(
        [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
    ).encode()


def markdown(results: Mapping[str, Any]) -> str:
    """Results as a Markdown table."""
    rows = [
        [verb, row["kills"], row["jobs"], row["identical"], f"{row['seconds']:.0f}"]
        for verb, row in results["rows"].items()
    ]
    head = ["verb", "kills", "jobs", "same bytes", "seconds undisturbed"]
    return (
        f"# Faults\n\n{describe(dict(results))}\n\nSIGKILL at moments drawn from the length of an "
        f"undisturbed job, up to {PER_JOB} for each job before it is left to finish.\n\n"
        f"{tabulate(rows, head, tablefmt='github')}\n"
    )


if __name__ == "__main__":
    main()
