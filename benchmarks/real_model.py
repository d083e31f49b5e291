"""Accuracy of every preset on a published model, with the published benchmark files.

    python benchmarks/real_model.py MODEL --data-root DIR [--calib SOURCE] [--presets NAME ...]
    python benchmarks/real_model.py --dry-run [--presets NAME ...]

MODEL is a folder or a hub id of a Qwen-VL model. DIR contains MMBench_DEV_EN, OCRBench,
MMMU_DEV_VAL and DocVQA_VAL as TSV files or as folders of parquet files. The original is evaluated
once; then each preset is quantized, evaluated on the same questions and compared with it.

A run that was stopped or killed resumes: finished presets are not opened again, a checkpoint
continues at its block, and no question is answered twice. Checkpoints are removed after their
evaluation unless --keep-checkpoints is given. --dry-run tries all of this with the built-in model
and drawings in the form of the published files. Writes real_model_NAME.json and .md to --out after
every preset.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.machine import commit, provenance
from common.preset_table import preset_table
from common.published_forms import DOCVQA, FORMS, write_published_forms
from common.stopwatch import Stopwatch

import vlpress
from vlpress.common.atomic import write_json, write_text
from vlpress.eval.config import BATCH_SIZE, MARGIN
from vlpress.eval.results import read_run
from vlpress.eval.tasks import check_spec
from vlpress.quant.recipe.presets import PRESETS

HERE = Path(__file__).resolve().parent
BENCHMARKS = (*FORMS, DOCVQA)
NOISE = 32  # questions per benchmark that measure the original's numerical noise
DRY_LIMIT = 4  # questions per benchmark
DRY_SAMPLES = 4  # calibration samples

Results = dict[str, Any]


def main() -> None:
    """Measure every preset and write the result files."""
    parser, options = parse()
    if options.dry_run:
        write_published_forms(options.data_root)
    try:
        for name in options.benchmarks:
            check_spec(name, pixels=options.pixels, data_root=options.data_root)
        study = Study(options)
        study.run()
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))  # exits with 2


def parse(
    arguments: Sequence[str] | None = None,
) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Read the command line, and fill in what a dry run chooses.

    Args:
        arguments: None for those of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", nargs="?", help="folder or hub id")
    parser.add_argument("--data-root", type=Path, help="folder of the published files")
    parser.add_argument("--benchmarks", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--calib", help="calibration samples; default: built-in drawings")
    parser.add_argument("--calib-samples", type=int, help="default: the recipe's")
    parser.add_argument("--limit", type=int, help="questions per benchmark (default: all)")
    parser.add_argument("--pixels", help="pixel budget; default: vlmevalkit, as published scores")
    parser.add_argument("--margin", type=float, default=MARGIN, help="points that may be lost")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--noise", type=int, help=f"questions of the noise floor ({NOISE})")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--keep-checkpoints", action="store_true")
    parser.add_argument("--dry-run", action="store_true", help="on the built-in model and drawings")
    parser.add_argument("--work", type=Path, help="kept for resuming; default: out/real_model/NAME")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results")
    options = parser.parse_args(arguments)
    if options.dry_run and (options.model or options.data_root):
        parser.error("--dry-run has a model and files of its own; leave MODEL and --data-root out")
    if not options.dry_run and not (options.model and options.data_root):
        parser.error("MODEL and --data-root are needed; --dry-run tries the script without them")
    options.name = "dry_run" if options.dry_run else Path(options.model).name
    options.work = options.work or Path("out") / "real_model" / options.name
    defaults: tuple[Any, ...]
    if options.dry_run:
        defaults = ("tiny", options.work / "data", DRY_LIMIT, DRY_SAMPLES, "model", 0, options.work)
    else:
        defaults = (options.model, options.data_root, None, None, "vlmevalkit", NOISE, None)
    keys = ("model", "data_root", "limit", "calib_samples", "pixels", "noise", "out")
    for key, value in zip(keys, defaults, strict=True):
        if getattr(options, key) is None:
            setattr(options, key, value)
    options.out = options.out or HERE / "results"
    return parser, options


class Study:
    """The original and all presets of one model."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.work: Path = options.work
        self.base = self.work / "base"

    def run(self) -> Results:
        """Finish the study; returns its results, which are also written.

        Raises:
            FileNotFoundError: the model or the calibration source does not exist.
            ValueError: an option does not fit, or --work holds a study with other options.
        """
        self.claim()
        refused = self.plan()
        chosen = [name for name in self.options.presets if name not in refused]
        if not chosen:
            name, reason = next(iter(refused.items()))
            raise ValueError(f"no preset fits {self.options.model} ({name}: {reason})")
        base = self.evaluate_base()
        for name in chosen:
            self.measure(name)
            rows = [row for other in chosen if (row := self.stored(other))]
            results = self.collect(base, rows, refused)
            self.write(results)
        return results

    def settings(self) -> dict[str, Any]:
        """Options that determine the numbers."""
        keys = ("calib", "calib_samples", "limit", "pixels", "margin", "batch_size", "noise")
        return {key: getattr(self.options, key) for key in keys}

    def claim(self) -> None:
        """Note the options in the work folder, or compare them with those noted earlier."""
        options = self.options
        made_from = {"model": str(options.model), "benchmarks": options.benchmarks}
        made_from |= self.settings()
        file = self.work / "study.json"
        if file.is_file():
            stored = json.loads(file.read_text("utf-8"))
            if changed := [key for key in made_from if stored.get(key) != made_from[key]]:
                key = changed[0]
                raise ValueError(
                    f"{self.work} holds a study with other options ({key}: {stored.get(key)}, now "
                    f"{made_from[key]}); give another --work or remove it"
                )
        else:
            self.work.mkdir(parents=True, exist_ok=True)
            write_json(file, made_from)

    def plan(self) -> dict[str, str]:
        """Plan the presets that are not finished; returns those that do not fit, with reasons."""
        refused = {}
        for name in self.options.presets:
            if self.stored(name):
                continue
            try:
                planned = vlpress.plan(self.options.model, recipe=name, **self.calibration())
            except ValueError as error:
                refused[name] = str(error)
                continue
            minutes = planned["estimate"]["seconds"] / 60
            print(f"{name}: about {minutes:.0f} min to quantize", flush=True)
        return refused

    def calibration(self) -> dict[str, Any]:
        """Options of calibration and of the machine, the same for all presets."""
        keys = ("calib", "calib_samples", "device", "threads")
        return {key: getattr(self.options, key) for key in keys}

    def evaluate_base(self) -> Results:
        """Evaluate the original, unless that is done; returns its part of the results."""
        file = self.work / "base.json"
        if not file.is_file():
            watch = Stopwatch(self.work / "base-sessions.jsonl")
            with watch.session("evaluate"):
                scores = self.evaluate(self.options.model, self.base, noise=self.options.noise)
            keys = ("metric", "score", "n", "n_rows", "health", "notes")
            write_json(
                file,
                {
                    "commit": commit(),
                    "bytes": read_run(self.base).info["model"]["bytes"],
                    "seconds": {"evaluate": asdict(watch.elapsed("evaluate"))},
                    "benchmarks": {
                        name: {key: entry[key] for key in keys}
                        for name, entry in scores["benchmarks"].items()
                    },
                },
            )
        return dict(json.loads(file.read_text("utf-8")))

    def evaluate(self, model: str | Path, out: Path, **more: Any) -> Results:
        """Evaluate a model on all benchmarks."""
        options = self.options
        return vlpress.evaluate(
            model,
            out,
            bench=options.benchmarks,
            data_root=options.data_root,
            limit=options.limit,
            pixels=options.pixels,
            batch_size=options.batch_size,
            device=options.device,
            threads=options.threads,
            progress=True,
            **more,
        )

    def measure(self, name: str) -> None:
        """Quantize, evaluate and compare one preset, unless that is done."""
        folder = self.work / "presets" / name
        if self.stored(name) is None:
            self.measure_in(folder, name)
        if not self.options.keep_checkpoints:
            shutil.rmtree(folder / "checkpoint", ignore_errors=True)

    def measure_in(self, folder: Path, name: str) -> None:
        """Quantize, evaluate and compare one preset; a finished row is written at the end."""
        checkpoint, watch = folder / "checkpoint", Stopwatch(folder / "sessions.jsonl")
        with watch.session("quantize"):
            vlpress.quantize(
                self.options.model, checkpoint, recipe=name, progress=True, **self.calibration()
            )
        with watch.session("evaluate"):
            self.evaluate(checkpoint, folder / "eval", reference=self.base)
        report = vlpress.compare(
            self.base, folder / "eval", folder / "report", margin=self.options.margin
        )
        row = summarize(name, report)
        row["seconds"] = {s: asdict(watch.elapsed(s)) for s in ("quantize", "evaluate")}
        write_json(folder / "row.json", {"base": self.identity(), "row": row})

    def stored(self, name: str) -> Results | None:
        """Row of a finished preset; None if it is not finished, or belongs to another base."""
        file = self.work / "presets" / name / "row.json"
        if not (file.is_file() and (self.work / "base.json").is_file()):
            return None
        stored = json.loads(file.read_text("utf-8"))
        row: Results = stored["row"]
        return row if stored["base"] == self.identity() else None

    def identity(self) -> str:
        """Digest of the original's evaluation: its model, setup and benchmark files."""
        run = read_run(self.base)
        tasks = {name: task.info["fingerprint"] for name, task in run.tasks.items()}
        text = json.dumps([run.fingerprint, tasks], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def collect(
        self, base: Results, rows: Sequence[Results], refused: Mapping[str, str]
    ) -> Results:
        """All results, with the date, commit and machine of this session."""
        return provenance(self.options.device) | {
            "model": str(self.options.model),
            "dry_run": self.options.dry_run,
            "settings": self.settings(),
            "base": base,
            "rows": list(rows),
            "refused": dict(refused),
        }

    def write(self, results: Results) -> None:
        """Write the two result files."""
        out, stem = self.options.out, f"real_model_{self.options.name}"
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / f"{stem}.json", results)
        write_text(out / f"{stem}.md", preset_table(results))


def summarize(name: str, report: Mapping[str, Any]) -> Results:
    """Extract the row of a preset from its report."""
    scores = ("n", "base", "candidate", "delta", "ci95", "ci_kind", "lower95", "verdict", "flips")
    fidelity = ("tokens", "kl_kind", "kl_mean", "kl_p99", "top1_agreement", "kl_unit_mean_ci95")
    return {
        "preset": name,
        "commit": commit(),
        "verdict": report["verdict"],
        "verdict_reasons": report["verdict_reasons"],
        "bytes": report["size"]["candidate_bytes"],
        "bits_per_weight": report["size"]["bits_per_weight"],
        "benchmarks": {
            key: {k: entry[k] for k in scores} for key, entry in report["benchmarks"].items()
        },
        "fidelity": {key: report["fidelity"][key] for key in fidelity},
        "speed": report["speed"],
    }


if __name__ == "__main__":
    main()
