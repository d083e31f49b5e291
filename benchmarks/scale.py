"""What quantizing large checkpoints takes: memory, disk and time, beside what `plan` said before.

    python benchmarks/scale.py [--case 3b ...] [--work out/scale] [--keep]

Writes checkpoints of random weights with the widths of published models (make_model.py), 32 samples
of about 400 tokens from the built-in drawings, and quantizes them with the command line in a
process of its own, of which the peak of resident memory is taken. Adds to results/scale.json and
rewrites results/scale.md beside this script. A case that was stopped goes on with its next run, but
is then measured in part only: remove its folder for a whole measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.machine import ROOT, describe, provenance
from tabulate import tabulate

HERE = Path(__file__).resolve().parent
SAMPLES = ["--calib-samples", "32", "--min-pixels", "274400", "--max-pixels", "282240"]
RECIPE = "w4a16"
STAGES = {"visual.blocks": "vision", "visual.merger": "merger", "model.layers": "decoder"}
GIB = 2**30


@dataclass(frozen=True)
class Case:
    """A model, and how much memory quantizing it may take."""

    family: str
    size: str
    layers: int | None
    """Of the decoder; None for all."""
    limit: int
    """GiB."""


CASES = {
    "3b": Case("qwen2_5", "3b", None, 4),
    "7b-8": Case("qwen2_5", "7b", 8, 6),
    "72b-2": Case("qwen2_5", "72b", 2, 16),
}


def main() -> None:
    """Measure the cases that are asked for and write the result files."""
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    stored = HERE / "results" / "scale.json"
    rows = json.loads(stored.read_text())["rows"] if stored.is_file() else {}
    for name in options.case:
        rows[name] = provenance() | measure(name, CASES[name], options.work)
        if not options.keep:
            for folder in (options.work / name, options.work / f"{name}-{RECIPE}"):
                shutil.rmtree(folder)
        stored.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
        stored.with_suffix(".md").write_text(markdown(rows))
    print(markdown(rows))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "scale")
    parser.add_argument("--keep", action="store_true", help="keep models and checkpoints")
    return parser.parse_args()


def measure(name: str, case: Case, work: Path) -> dict[str, Any]:
    """Plan and quantize one model."""
    source, out = work / name, work / f"{name}-{RECIPE}"
    if not source.is_dir():
        partial = source.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        # Not in this process: Linux counts the memory of a parent as its children's, see wait4.
        made = [sys.executable, str(HERE / "make_model.py"), str(partial), "--family", case.family]
        layers = [] if case.layers is None else ["--layers", str(case.layers)]
        subprocess.run([*made, "--size", case.size, *layers], check=True)
        partial.rename(source)
    shutil.rmtree(out, ignore_errors=True)
    asked = [str(source), "--recipe", RECIPE, *SAMPLES, "--json"]
    planned = json.loads(run(["plan", *asked]))["estimate"]
    started = time.monotonic()
    journal = out.with_name(f".{out.name}.vlpress-work") / "journal.jsonl"
    with Watch(journal) as watch:
        process = subprocess.Popen(
            vlpress(["quantize", *asked, "--out", str(out)]), stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status:
        sys.exit(f"vlpress quantize of {name} ended with {os.waitstatus_to_exitcode(status)}")
    return {
        "planned": planned,
        "limit_bytes": case.limit * GIB,
        "source_bytes": size_of(source),
        "output_bytes": size_of(out),
        "peak_bytes": usage.ru_maxrss * 1024,
        "seconds": seconds,
        "stages": watch.stages(started, seconds),
    }


class Watch:
    """Notes when each line of a journal comes."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._lines: list[tuple[float, str]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.5):
            try:
                lines = self._journal.read_text().splitlines()
            except FileNotFoundError:
                continue
            for line in lines[len(self._lines) :]:
                self._lines.append((time.monotonic(), json.loads(line)["block"]))

    def stages(self, started: float, seconds: float) -> dict[str, float]:
        """Seconds of each stage: everything before the first block counts as its own."""
        found: dict[str, float] = {}
        before = started
        for when, block in self._lines:
            stage = next(name for start, name in STAGES.items() if block.startswith(start))
            found[stage] = found.get(stage, 0.0) + when - before
            before = when
        return {**found, "writing": started + seconds - before}


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def vlpress(arguments: list[str]) -> list[str]:
    """The command line of the package."""
    return [sys.executable, "-m", "vlpress", *arguments]


def run(arguments: list[str]) -> str:
    """What a verb prints."""
    return subprocess.run(vlpress(arguments), check=True, capture_output=True, text=True).stdout


def markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables of the results."""
    memory = [
        [
            name,
            f"{row['source_bytes'] / 1e9:.1f}",
            f"{row['output_bytes'] / 1e9:.1f}",
            f"{row['peak_bytes'] / GIB:.2f}",
            f"{row['limit_bytes'] / GIB:.0f}",
            f"{row['planned']['peak_bytes'] / GIB:.2f}",
            f"{row['planned']['peak_bytes'] / row['peak_bytes'] - 1:+.0%}",
            row["planned"]["tokens"],
        ]
        for name, row in rows.items()
    ]
    stages = [*STAGES.values(), "writing"]
    times = [
        [
            name,
            *(f"{row['stages'].get(stage, 0):.0f}" for stage in stages),
            f"{row['seconds']:.0f}",
            f"{row['planned']['seconds']:.0f}",
        ]
        for name, row in rows.items()
    ]
    made = "\n".join(f"- {name}: {describe(dict(row))}" for name, row in rows.items())
    head = ["model", "GB", "GB after", "peak GiB", "at most", "planned GiB", "off", "tokens"]
    return (
        f"# Scale\n\n{made}\n\nThe preset {RECIPE} with 32 samples; a number behind the size is "
        "how many decoder layers of it there are. Peak: of resident memory, the process as a "
        "whole.\n\n"
        f"{tabulate(memory, head, tablefmt='github')}\n\n"
        "Seconds, by stage; the first one includes reading the checkpoint for its fingerprint and "
        "preparing the samples.\n\n"
        f"{tabulate(times, ['model', *stages, 'all', 'planned'], tablefmt='github')}\n"
    )


if __name__ == "__main__":
    main()
