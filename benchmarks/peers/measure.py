"""Divergence of the peers' checkpoints from the baseline, measured by vlpress.

Samples, arithmetic and summary are those of vlpress's own table (`benchmarks/accuracy.py`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from common.choice import FINAL, RUNOFF, contenders, winner
from common.divergence import SEEDS, Divergence, Judges, summarize
from common.machine import describe, provenance
from common.rows.row import SAMPLE_FACTORS, sample_counts
from common.tables import divergence, listed
from peers.against import Row, Runs, sections
from peers.settings import RECORD, Job
from tabulate import tabulate

from vlpress.quant.checkpoint.loading import load_quantized

STORED = "divergence.json"


def gather(jobs: Sequence[Job], validation: int, held_out: int) -> dict[str, Any]:
    """Measure finished checkpoints, with one row for all seeds of a method.

    Args:
        jobs: jobs of the checkpoints.
        validation: number of samples for the choice of methods.
        held_out: number of samples for the report.
    """
    rows = []
    for model, of_model in groupby(sorted(jobs, key=_order), key=lambda job: job.model):
        ruler = Ruler(model, validation, held_out)
        for _, group in groupby(of_model, key=lambda job: (job.setting, job.peer)):
            rows += ruler.rows(list(group))
    return provenance() | {
        "validation": {"seed": SEEDS["validation"], "samples": validation},
        "held_out": {"seed": SEEDS["held_out"], "samples": held_out},
        "runoff": {"seed": SEEDS["runoff"], "times_validation": RUNOFF},
        "final": {"seed": SEEDS["final"], "times_held_out": FINAL},
        "rows": rows,
    }


class Ruler:
    """Measures the checkpoints of one model."""

    def __init__(self, model: str, validation: int, held_out: int) -> None:
        self.judges = Judges(model)
        self.validation, self.held_out = validation, held_out

    def rows(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Measure one row for each method of one library at one setting."""
        methods = {
            method: list(group) for method, group in groupby(jobs, key=lambda job: job.method)
        }
        measured = {method: self.runs(made, "validation") for method, made in methods.items()}
        close = jobs[0].setting in SAMPLE_FACTORS
        names = contenders(measured) if close else []
        rows = [self.row(made, len(names) > 1 and name in names) for name, made in methods.items()]
        if close and (best := winner(rows)) is not None:
            best["final"] = summarize(self.runs(methods[best["method"]], "final"))
        return rows

    def row(self, jobs: Sequence[Job], raced: bool) -> dict[str, Any]:
        """Measure all seeds of a method, with or without a run-off."""
        first = jobs[0]
        sets = ["validation", "held_out", *(["runoff"] if raced else [])]
        return {
            "model": first.model,
            "setting": first.setting,
            "peer": first.peer,
            "version": json.loads((first.out / RECORD).read_text())["version"],
            "method": first.method,
            "seeds": [job.seed for job in jobs],
            **{name: summarize(self.runs(jobs, name)) for name in sets},
        }

    def runs(self, jobs: Sequence[Job], name: str) -> list[Divergence]:
        """Divergences of checkpoints on one set of samples."""
        return [Divergence(**self.cell(job, name)[name]) for job in jobs]

    def cell(self, job: Job, name: str) -> dict[str, Any]:
        """Measure one checkpoint on the sets of `name`, or load its measurement."""
        sizes, path = sample_counts(job.setting, self.validation, self.held_out), job.out / STORED
        more = {"runoff": RUNOFF * sizes["validation"], "final": FINAL * sizes["held_out"]}
        if name in more:
            sizes, path = {name: more[name]}, job.out / f"{name}-{STORED}"
        key = {"sizes": sizes, "made_from": job.made_from}
        if path.is_file():
            cell: dict[str, Any] = json.loads(path.read_text())
            if cell.pop("key") == key:
                return cell
        model = load_quantized(job.out, device="cpu", dtype="fp32")
        cell = self.judges.measure(model, sizes)
        path.write_text(json.dumps({**cell, "key": key}))
        print(job.model, job.out.name, *sizes, file=sys.stderr, flush=True)
        return cell


def stored_runs(jobs: Sequence[Job], work: Path) -> Runs:
    """Read divergences per sample that were stored while rows were measured.

    Args:
        jobs: of the peers' checkpoints.
        work: the folder --work of `benchmarks/accuracy.py`.
    """

    def runs(own: Row, other: Row) -> tuple[list[Divergence], list[Divergence]] | None:
        key = other["model"], other["setting"], other["peer"], other["method"]
        theirs = [j for j in jobs if (j.model, j.setting, j.peer, j.method) == key]
        folder = work / other["model"] / own["setting"] / own["method"]
        ours = [folder / f"seed{seed}" / "cell.json" for seed in own["seeds"]]
        paths = [*ours, *(job.out / STORED for job in theirs)]
        if not all(path.is_file() for path in paths):
            return None
        cells = [Divergence(**json.loads(path.read_text())["held_out"]) for path in paths]
        return cells[: len(ours)], cells[len(ours) :]

    return runs


def _order(job: Job) -> tuple[str, str, str, str, int]:
    return job.model, job.setting, job.peer, job.method, job.seed


def markdown(
    results: dict[str, Any],
    ours: Mapping[str, Any],
    runs: Runs = lambda own, other: None,
) -> str:
    """Results as Markdown, with date and machine.

    Args:
        results: from `gather`.
        ours: content of accuracy.json.
        runs: for intervals of paired differences, see `stored_runs`.
    """
    rows = results["rows"]
    versions = sorted({f"{row['peer']} {row['version']}" for row in rows})
    lines = [
        "# llm-compressor and AutoRound on the built-in models",
        "",
        f"{describe(results)} {listed(versions)}.",
        "",
        "KL as in accuracy.md, on the same held-out samples: checkpoints of the libraries, loaded "
        "and run by vlpress. docs/peers.md explains the methods. The best methods at w4a16 and "
        "w3a16 are compared on additional samples that no choice depends on. The difference is the "
        "95 % interval of the paired difference, vlpress minus peer. A ratio below 1 "
        "means that vlpress is closer to the baseline; its rows "
        f"are those of accuracy.md (commit {ours['commit']}).",
    ]
    head = ["setting", "peer", "method", "KL", "seeds", "p99", "top-1"]
    for model in dict.fromkeys(row["model"] for row in rows):
        body = [
            [row["setting"], row["peer"], row["method"], *divergence(row["held_out"])]
            for row in rows
            if row["model"] == model
        ]
        table = tabulate(body, head, tablefmt="github", disable_numparse=True)
        lines += ["", f"## {model}: the peers", "", table]
        of_model = [row for row in rows if row["model"] == model]
        if model in ours["models"]:
            for part in sections(model, ours["models"][model]["rows"], of_model, runs):
                lines += ["", part]
    return "\n".join(lines) + "\n"
