"""Memory, disk and time of quantizing large checkpoints, compared with the estimates of `plan`.

    python benchmarks/scale.py [--case 3b ...] [--work out/scale] [--keep]

Writes checkpoints of random weights with the widths of published models (make_model.py) and
quantizes them by the command line in a separate process, with 32 built-in samples of about 400
tokens (4 or 8 for some, see `CASES`). Peak memory is the high-water mark of
that process. Adds to results/scale.json and rewrites results/scale.md. An interrupted case resumes
with the next run, but then only a part of it is measured: remove its folder for a complete
measurement.
"""

from __future__ import annotations

import argparse
import json
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
from common.processes import run_measured
from tabulate import tabulate

HERE = Path(__file__).resolve().parent
IMAGE_TOKENS = 350, 360
"""Fewest and most tokens of an image."""
RECIPE = "w4a16"
STAGES = {
    "visual.blocks": "vision",
    "visual.merger": "merger",
    "visual.deepstack_merger": "merger",
    "model.layers": "decoder",
}
GIB = 2**30


@dataclass(frozen=True)
class Case:
    """A model and the memory limit of its quantization."""

    family: str
    size: str
    layers: int | None
    """Decoder layers; None for all."""
    limit: int
    """Memory limit in GiB."""
    samples: int = 32
    token_pixels: int = 28 * 28
    """Pixels of an image token."""

    @property
    def arguments(self) -> list[str]:
        """Options of the command line for the calibration samples."""
        least, most = (tokens * self.token_pixels for tokens in IMAGE_TOKENS)
        pixels = ["--min-pixels", str(least), "--max-pixels", str(most)]
        return ["--calib-samples", str(self.samples), *pixels]


CASES = {
    "3b": Case("qwen2_5", "3b", None, 4),
    "7b-8": Case("qwen2_5", "7b", 8, 6),
    "72b-2": Case("qwen2_5", "72b", 2, 16),
    "30b-a3b-2": Case("qwen3", "30b-a3b", 2, 16, samples=4, token_pixels=32 * 32),
    "27b-4": Case("qwen3_5", "27b", 4, 12, samples=8, token_pixels=32 * 32),
    "35b-a3b-4": Case("qwen3_5", "35b-a3b", 4, 16, samples=4, token_pixels=32 * 32),
}


def main() -> None:
    """Measure the selected cases and write the result files."""
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    stored = HERE / "results" / "scale.json"
    rows = json.loads(stored.read_text())["rows"] if stored.is_file() else {}
    for name in options.case:
        rows[name] = provenance() | measure(name, CASES[name], options.work)
        rows[name]["timed"] = not options.no_times
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
    parser.add_argument(
        "--no-times", action="store_true", help="show no times, because other work ran"
    )
    return parser.parse_args()


def measure(name: str, case: Case, work: Path) -> dict[str, Any]:
    """Plan and quantize one model."""
    source, out = work / name, work / f"{name}-{RECIPE}"
    if not source.is_dir():
        partial = source.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        # In a separate process, so that this one stays small.
        script = [sys.executable, str(HERE / "make_model.py"), str(partial)]
        layers = [] if case.layers is None else ["--layers", str(case.layers)]
        options = ["--family", case.family, "--size", case.size, *layers]
        subprocess.run([*script, *options], check=True)
        partial.rename(source)
    shutil.rmtree(out, ignore_errors=True)
    arguments = [str(source), "--recipe", RECIPE, *case.arguments, "--json"]
    planned = json.loads(run(["plan", *arguments]))["estimate"]
    started = time.monotonic()
    journal = out.with_name(f".{out.name}.vlpress-work") / "journal.jsonl"
    with JournalWatch(journal) as watch:
        usage = run_measured(vlpress(["quantize", *arguments, "--out", str(out)]))
    return {
        "planned": planned,
        "samples": case.samples,
        "limit_bytes": case.limit * GIB,
        "source_bytes": size_of(source),
        "output_bytes": size_of(out),
        "peak_bytes": usage.peak_bytes,
        "seconds": usage.seconds,
        "stages": watch.stages(started, usage.seconds),
    }


class JournalWatch:
    """Records the time at which each line of a journal appears."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._lines: list[tuple[float, str]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll)

    def __enter__(self) -> JournalWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._stop.wait(0.5):
            try:
                lines = self._journal.read_text().splitlines()
            except FileNotFoundError:
                continue
            for line in lines[len(self._lines) :]:
                self._lines.append((time.monotonic(), json.loads(line)["block"]))

    def stages(self, started: float, seconds: float) -> dict[str, float]:
        """Seconds by stage; the time before a block's line belongs to the block's stage."""
        stages: dict[str, float] = {}
        before = started
        for when, block in self._lines:
            stage = next(name for start, name in STAGES.items() if block.startswith(start))
            stages[stage] = stages.get(stage, 0.0) + when - before
            before = when
        return {**stages, "writing": started + seconds - before}


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def vlpress(arguments: list[str]) -> list[str]:
    """The command line of the package."""
    return [sys.executable, "-m", "vlpress", *arguments]


def run(arguments: list[str]) -> str:
    """Standard output of a verb."""
    return subprocess.run(vlpress(arguments), check=True, capture_output=True, text=True).stdout


def markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables of the results."""
    memory = [
        [
            name,
            f"{row['source_bytes'] / 1e9:.1f}",
            f"{row['output_bytes'] / 1e9:.1f}",
            f"{row['peak_bytes'] / GIB:.2f}",
            f"{row['limit_bytes'] / GIB:.0f}",
            f"{row['planned']['peak_bytes'] / GIB:.2f}",
            f"{row['planned']['peak_bytes'] / row['peak_bytes'] - 1:+.0%}",
            row.get("samples", 32),
            row["planned"]["tokens"],
        ]
        for name, row in rows.items()
    ]
    stages = [*dict.fromkeys(STAGES.values()), "writing"]
    times = [
        [
            name,
            *(f"{row['stages'].get(stage, 0):.0f}" for stage in stages),
            f"{row['seconds']:.0f}",
            f"{row['planned']['seconds']:.0f}",
        ]
        for name, row in rows.items()
        if row.get("timed", True)
    ]
    origins = "\n".join(f"- {name}: {describe(dict(row))}" for name, row in rows.items())
    head = [
        "model",
        "GB",
        "GB after",
        "peak GiB",
        "at most",
        "planned GiB",
        "off",
        "samples",
        "tokens",
    ]
    return (
        f"# Scale\n\n{origins}\n\nThe preset {RECIPE}; a number after the size is "
        "the number of decoder layers. Peak: resident memory of the process.\n\n"
        f"{tabulate(memory, head, tablefmt='github')}\n\n"
        "Seconds, by stage; the first one includes reading the checkpoint for its fingerprint and "
        "preparing the samples.\n\n"
        f"{tabulate(times, ['model', *stages, 'all', 'planned'], tablefmt='github')}\n"
    )


if __name__ == "__main__":
    main()
