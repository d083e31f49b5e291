"""What each recipe costs in accuracy, on the built-in models and benchmark files.

    python benchmarks/accuracy.py [--limit N] [--models tiny tiny-outliers] [--recipes ...]

Every recipe is quantized, written, loaded back and evaluated; the divergence from the bf16 model is
measured on its own answers. The run resumes: checkpoints and answers live in --work; what was made
with other settings is made again.
Writes results/accuracy.json and results/accuracy.md beside this script.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tabulate import tabulate

from vlpress import __version__
from vlpress.checkpoints import quantize_to
from vlpress.eval import compare
from vlpress.eval.fidelity import unit_divergences
from vlpress.eval.results import read_fidelity, read_run
from vlpress.eval.statistics import mean_interval
from vlpress.evaluations import evaluate_to
from vlpress.progress import Reporter
from vlpress.requests import Calibration, Questions, Settings

HERE = Path(__file__).resolve().parent
MODELS = ("tiny", "tiny-outliers")
RECIPES = ("w8a16", "w4a16", "w4a16-rtn", "w3a16", "w3a16-rtn")
BENCHES = ("builtin-mmbench", "builtin-ocrbench", "builtin-mmmu")


def main() -> None:
    """Measure, then write the two result files."""
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    results: dict[str, Any] = {
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": machine(options.device),
        "versions": {"vlpress": __version__, "torch": torch.__version__},
        "limit": options.limit,
        "samples": options.samples,
        "models": {},
    }
    for name in options.models:
        results["models"][name] = measure_model(name, options)
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    (options.out / "accuracy.json").write_text(text)
    (options.out / "accuracy.md").write_text(markdown(results))
    print(markdown(results))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--bench", nargs="+", default=BENCHES)
    parser.add_argument("--limit", type=int, help="questions per benchmark (default all)")
    parser.add_argument("--samples", type=int, default=128, help="calibration samples")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="torch threads (default torch's own)")
    parser.add_argument("--work", type=Path, default=Path("out/accuracy"), help="kept for resuming")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    return parser.parse_args()


def measure_model(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All recipes on one model; scores, divergences and the paired GPTQ-minus-RTN intervals."""
    work = options.work / Path(name).name
    scores = ask(name, work / "base", options)
    rows = {recipe: measure_recipe(name, recipe, work, options) for recipe in options.recipes}
    intervals = {}
    for recipe in options.recipes:
        if f"{recipe}-rtn" in rows:
            pair = work / recipe / "eval", work / f"{recipe}-rtn" / "eval"
            intervals[recipe] = paired_divergence(*pair)
    return {
        "base": {key: value["score"] for key, value in scores["benchmarks"].items()},
        "n": {key: value["n"] for key, value in scores["benchmarks"].items()},
        "recipes": rows,
        "kl_gptq_minus_rtn": intervals,
    }


def ask(
    model: str, out: Path, options: argparse.Namespace, reference: Path | None = None
) -> dict[str, Any]:
    """Evaluate a model into a folder; what is there is resumed, or replaced if it is stale."""
    return evaluate_to(
        out,
        model=model,
        questions=Questions(tuple(options.bench), options.limit, options.batch_size),
        settings=Settings(device=options.device),
        reference=reference,
        overwrite=True,
        fresh=False,
        reporter=Reporter(),
    )


def measure_recipe(
    name: str, recipe: str, work: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Quantize, write, load back, evaluate and compare one recipe."""
    base, work = work / "base", work / recipe
    checkpoint, clock = work / "checkpoint", work / "quantize_seconds.json"
    made_before = stamp(checkpoint)
    started = time.perf_counter()
    quantize_to(
        checkpoint,
        model=name,
        recipe=recipe,
        calibration=Calibration(None, options.samples),
        settings=Settings(device=options.device),
        format_="gptq",
        overwrite=True,
        fresh=False,
        reporter=Reporter(),
    )
    if stamp(checkpoint) != made_before:
        clock.write_text(json.dumps(time.perf_counter() - started))
    ask(str(checkpoint), work / "eval", options, reference=base)
    judged = compare(base, work / "eval", work / "report")
    record = json.loads((checkpoint / "vlpress.json").read_text())
    return {
        "benchmarks": {
            key: {k: row[k] for k in ("candidate", "delta", "ci95", "verdict", "flips")}
            for key, row in judged["benchmarks"].items()
        },
        "fidelity": judged["fidelity"],
        "size": record["size"],
        "fallback_rows": record["fallback_rows"],
        "layer_error": fmean(layer["final_error"] for layer in record["layers"])
        if record["calibration"]
        else None,
        "quantize_seconds": json.loads(clock.read_text()) if clock.is_file() else None,
    }


def stamp(checkpoint: Path) -> int | None:
    """When a checkpoint was written; None if it was not."""
    marker = checkpoint / "work.json"
    return marker.stat().st_mtime_ns if marker.is_file() else None


def paired_divergence(gptq: Path, rtn: Path) -> dict[str, Any]:
    """Mean KL of GPTQ minus RTN with a paired 95 % interval, over the benchmarks' units.

    Units (the rotations of one question count once) of all benchmarks are pooled.
    """
    ours, theirs = unit_means(gptq), unit_means(rtn)
    differences = [ours[unit] - theirs[unit] for unit in sorted(ours.keys() & theirs.keys())]
    interval = mean_interval(differences)
    return {
        "units": len(differences),
        "gptq": fmean(ours.values()),
        "rtn": fmean(theirs.values()),
        "difference": fmean(differences),
        "ci95": [interval.low, interval.high],
    }


def unit_means(folder: Path) -> dict[tuple[str, str], float]:
    """Mean divergence per unit of an evaluation, keyed by benchmark and unit."""
    means = {}
    for name, task in read_run(folder).tasks.items():
        for unit, value in unit_divergences(task.items, read_fidelity(task) or {}).items():
            means[name, unit] = value
    return means


def markdown(results: dict[str, Any]) -> str:
    """The tables, with where and when they were made."""
    machine = results["machine"]
    lines = [
        "# Accuracy of the recipes (synthetic benchmarks)",
        "",
        f"{results['date']}, commit {results['commit']}, {machine['processor']}, "
        f"{machine['threads']} threads, torch {results['versions']['torch']}. "
        f"{results['samples']} calibration samples"
        + (
            f"; only {results['limit']} questions of each benchmark, spread over its categories."
            if results["limit"]
            else "."
        ),
        "",
        "Scores in percent; in brackets the paired 95 % interval of the difference from bf16. "
        "KL in nats per answer token, against bf16.",
    ]
    for name, model in results["models"].items():
        lines += ["", f"## {name}", "", model_table(model)]
        for recipe, found in model["kl_gptq_minus_rtn"].items():
            low, high = found["ci95"]
            lines += [
                "",
                f"{recipe}: mean KL {found['gptq']:.5f} with GPTQ, {found['rtn']:.5f} with RTN; "
                f"difference {found['difference']:+.5f}, paired 95 % interval "
                f"[{low:+.5f}, {high:+.5f}] over {found['units']} units.",
            ]
    return "\n".join(lines) + "\n"


def model_table(model: dict[str, Any]) -> str:
    """One row per recipe."""
    benches = list(model["base"])
    head = ["recipe", *(f"{bench} (n {model['n'][bench]})" for bench in benches)]
    head += ["mean KL", "top-1", "bits", "MB"]
    first = next(iter(model["recipes"].values()))
    rows = [
        [
            "bf16",
            *(f"{model['base'][bench]:.1f}" for bench in benches),
            "",
            "",
            "16",
            f"{first['size']['base_bytes'] / 1e6:.1f}",
        ]
    ]
    for recipe, found in model["recipes"].items():
        cells = []
        for bench in benches:
            row = found["benchmarks"][bench]
            cells.append("{:.1f} [{:+.1f}, {:+.1f}]".format(row["candidate"], *row["ci95"]))
        fidelity = found["fidelity"]
        rows.append(
            [
                recipe,
                *cells,
                f"{fidelity['kl_mean']:.5f}",
                f"{100 * fidelity['top1_agreement']:.2f} %",
                f"{found['size']['bits_per_weight']:.2f}",
                f"{found['size']['candidate_bytes'] / 1e6:.1f}",
            ]
        )
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def machine(device: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    on_gpu = torch.cuda.is_available() and device != "cpu"
    if on_gpu:
        processor = torch.cuda.get_device_name()
    return {"processor": processor, "threads": torch.get_num_threads(), "gpu": on_gpu}


def commit() -> str:
    """Short hash of the checkout, with a + if it has changes."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=HERE, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


if __name__ == "__main__":
    main()
