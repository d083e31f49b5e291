"""Reduction of visual tokens on the built-in models: the tables of docs/token-reduction.md.

    python benchmarks/token_reduction.py [--models tiny tiny3] [--limit N] [--work DIR]

Every row is an evaluation of the original weights with another set of visual tokens, compared with
all tokens question by question. Rules with a share keep 9/16 and 4/16 of the tokens: as many as
images have that are scaled to at most 9 and 4 tokens (`max_pixels`), except where an image has 9
tokens from the start. `random` has three seeds. `--work` keeps the answers, so that an interrupted
run resumes. Writes results/token_reduction.json, results/token_reduction.md, and the tables of the
first model between the marks of docs/token-reduction.md. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Any

from common.machine import ROOT, describe, provenance
from tabulate import tabulate

from vlpress.eval import evaluate_model, open_task
from vlpress.eval.answering.prompt_lengths import placeholders
from vlpress.eval.config import BUILTIN_BENCHES
from vlpress.eval.report.report import build_report
from vlpress.eval.results import read_run
from vlpress.eval.tasks.task import Task
from vlpress.model.processing.processor import Processor
from vlpress.model.token_reduction.table import parse_rule
from vlpress.quant.checkpoint.loading import open_model, resolve_folder

SHARES = {9: 9 / 16, 4: 4 / 16}
"""Budget of scaled images in tokens -> share that rules keep."""
THRESHOLDS = (0.98, 0.9, 0.8)
SEEDS = (0, 1, 2)
STORED = ROOT / "benchmarks" / "results" / "token_reduction.json"
DOCUMENT = ROOT / "docs" / "token-reduction.md"
MARKS = (
    "<!-- begin: benchmarks/token_reduction.py -->",
    "<!-- end: benchmarks/token_reduction.py -->",
)
HEADS = ("visual tokens", "of all", "score", "Δ", "KL, nats")


@dataclass(frozen=True)
class Variant:
    """One set of visual tokens."""

    method: str
    setting: str
    rule: str | None = None
    """Rule that drops tokens, see `parse_rule`."""
    budget: int | None = None
    """Visual tokens that an image is scaled to at most."""

    @property
    def folder(self) -> str:
        """Name of its evaluation."""
        return (self.rule or f"{self.method}-{self.budget}").replace(":", "-").replace(",", "-")


def variants() -> Iterator[Variant]:
    """Everything that is compared with all tokens, in the order of the tables."""
    for budget in SHARES:
        yield Variant("resized", f"at most {budget}", budget=budget)
    for threshold in THRESHOLDS:
        yield Variant("duplicates", f"threshold {threshold}", f"duplicates:threshold={threshold}")
    for budget, share in SHARES.items():
        yield Variant("divprune", f"keep {budget}/16", f"divprune:keep={share}")
    for budget, share in SHARES.items():
        for seed in SEEDS:
            rule = f"random:keep={share},seed={seed}"
            yield Variant("random", f"keep {budget}/16", rule)


def measure(name: str, limit: int | None, work: Path) -> list[dict[str, Any]]:
    """Evaluate a built-in model with all tokens and with every variant.

    Returns:
        One row per variant and benchmark; the first of each benchmark has all tokens.
    """
    folder = resolve_folder(name)
    model, own = open_model(name, device="cpu"), Processor.from_folder(folder)
    pixels = own.config.vision.pixel_factor**2
    tasks = [open_task(bench, limit=limit) for bench in BUILTIN_BENCHES]
    base = work / name / "all"
    evaluate_model(model, own, tasks, base, is_reference=True, name=name, source=folder)
    whole = {task.name: count_tokens(task, own) for task in tasks}
    rows = []
    for variant in (None, *variants()):
        model.reduction = variant and variant.rule and parse_rule(variant.rule)
        processor = own
        if variant and variant.budget:
            processor = own.with_max_pixels(variant.budget * pixels)
        out = base if variant is None else work / name / variant.folder
        result = evaluate_model(
            model, processor, tasks, out,
            reference=None if variant is None else base,
            across_pixels=True, name=name, source=folder,
        )  # fmt: skip
        report = build_report(read_run(base), read_run(out), across_pixels=True)[0]
        for task in tasks:
            scores, compared = result.benchmarks[task.name], report["benchmarks"][task.name]
            divergence = (result.fidelity or {}).get(task.name) if variant else None
            dropped = scores.get("visual_tokens")
            kept = dropped["kept"] if dropped else count_tokens(task, processor)
            row = {
                "benchmark": task.name,
                "method": variant.method if variant else "all tokens",
                "setting": variant.setting if variant else "",
                "rule": variant.rule if variant else None,
                "questions": scores["n"],
                "tokens": kept / count_images(task),
                "retention": kept / whole[task.name],
                "score": scores["score"],
                "delta": compared["delta"],
                "ci95": compared["ci95"],
                "kl_mean": divergence["kl_mean"] if divergence else None,
            }
            rows.append(row)
        label = f"{variant.method} {variant.setting}" if variant else "all tokens"
        print(name, label, [f"{row['score']:.1f}" for row in rows[-len(tasks) :]], flush=True)
    return rows


def count_tokens(task: Task, processor: Processor) -> int:
    """Count the visual tokens of all prompts of a benchmark as a processor scales the images."""
    unit = processor.config.vision.merge_unit
    return sum(
        prod(visual.grid) // unit for item in task.items for visual in placeholders(item, processor)
    )


def count_images(task: Task) -> int:
    """Count the images of all prompts of a benchmark."""
    return sum(len(item.images) for item in task.items)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the rows of one benchmark; the seeds of a setting share a row."""
    settings = dict.fromkeys((row["method"], row["setting"]) for row in rows)
    lines = []
    for method, setting in settings:
        own = [row for row in rows if (row["method"], row["setting"]) == (method, setting)]
        mean = {key: fmean(row[key] for row in own) for key in ("tokens", "retention", "score")}
        score, delta, divergence = f"{mean['score']:.1f}", "", ""
        if method != "all tokens":
            delta = f"{fmean(row['delta'] for row in own):+.1f}"
            divergence = f"{fmean(row['kl_mean'] for row in own):.3f}"
        if len(own) > 1:
            scores = [row["score"] for row in own]
            score += f" ({min(scores):.1f} to {max(scores):.1f})"
        elif delta:
            delta += " [{:+.1f}, {:+.1f}]".format(*own[0]["ci95"])
        name = f"{method}, {len(own)} seeds" if len(own) > 1 else method
        cells = [f"{mean['tokens']:.1f}", f"{100 * mean['retention']:.0f} %"]
        lines.append([name, setting, *cells, score, delta, divergence])
    heads = ["tokens of an image", "", *HEADS]
    return tabulate(lines, heads, tablefmt="github", disable_numparse=True)


def model_tables(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """Format the tables of one model, a benchmark each."""
    parts = []
    for bench in BUILTIN_BENCHES:
        own = [row for row in rows if row["benchmark"] == bench]
        parts += [f"**{name}, {bench}** ({own[0]['questions']} questions)", table(own)]
    return "\n\n".join(parts)


def header(results: dict[str, Any]) -> str:
    """Describe the machine and the questions."""
    limit = results["limit"]
    questions = "All questions" if limit is None else f"At most {limit} questions of each benchmark"
    return f"{describe(results)} {questions}; with seeds the mean, and the range over seeds."


def main() -> None:
    """Measure, and write the result files and the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=["tiny", "tiny3"])
    parser.add_argument("--limit", type=int, help="questions of each benchmark; default all")
    parser.add_argument("--work", type=Path, help="folder for the answers; default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        rows = {name: measure(name, options.limit, work) for name in options.models}
    results: dict[str, Any] = {**provenance(), "limit": options.limit, "models": rows}
    STORED.write_text(json.dumps(results, indent=1) + "\n")
    title = "# Reduction of visual tokens (built-in models, synthetic benchmarks)"
    tables = [model_tables(name, of_model) for name, of_model in rows.items()]
    STORED.with_suffix(".md").write_text("\n\n".join([title, header(results), *tables]) + "\n")
    before, _, rest = DOCUMENT.read_text("utf-8").partition(MARKS[0])
    section = "\n\n".join([MARKS[0], header(results), tables[0], MARKS[1]])
    DOCUMENT.write_text(f"{before}{section}{rest.partition(MARKS[1])[2]}", "utf-8")


if __name__ == "__main__":
    main()
