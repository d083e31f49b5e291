"""How far the peers' checkpoints are from the original, as vlpress reads and runs them.

The same drawings, arithmetic and summary as in vlpress's own table (`benchmarks/accuracy.py`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from common.divergence import SEEDS, Divergence, Judges, summarize
from common.machine import describe, provenance
from common.rows import drawings
from common.tables import divergence, listed
from peers.against import sections
from peers.settings import RECORD, Job
from tabulate import tabulate

from vlpress.quant.loading import load_quantized

STORED = "divergence.json"


def gather(jobs: Sequence[Job], validation: int, held_out: int) -> dict[str, Any]:
    """Measure finished checkpoints; one row for all seeds of a method.

    Args:
        jobs: of finished checkpoints.
        validation: drawings on which methods are chosen.
        held_out: drawings on which they are reported.
    """
    rows = []
    for model, of_model in groupby(sorted(jobs, key=_order), key=lambda job: job.model):
        ruler = Ruler(model, validation, held_out)
        for (setting, peer, method), group in groupby(
            of_model, key=lambda job: (job.setting, job.peer, job.method)
        ):
            made = list(group)
            cells = [ruler.cell(job) for job in made]
            rows.append(
                {
                    "model": model,
                    "setting": setting,
                    "peer": peer,
                    "version": cells[0]["version"],
                    "method": method,
                    "seeds": [job.seed for job in made],
                    **{
                        name: summarize([Divergence(**cell[name]) for cell in cells])
                        for name in SEEDS
                    },
                }
            )
    return provenance() | {
        "validation": {"seed": SEEDS["validation"], "samples": validation},
        "held_out": {"seed": SEEDS["held_out"], "samples": held_out},
        "rows": rows,
    }


class Ruler:
    """Measures the checkpoints of one model."""

    def __init__(self, model: str, validation: int, held_out: int) -> None:
        self.judges = Judges(model)
        self.validation, self.held_out = validation, held_out

    def cell(self, job: Job) -> dict[str, Any]:
        """One checkpoint, measured or read back."""
        version = json.loads((job.out / RECORD).read_text())["version"]
        sizes = drawings(job.setting, self.validation, self.held_out)
        key = {"sizes": sizes, "made_from": job.made_from}
        stored = job.out / STORED
        if stored.is_file():
            found = json.loads(stored.read_text())
            if found.pop("key") == key:
                return {**found, "version": version}
        model = load_quantized(job.out, device="cpu", dtype="fp32")
        found = self.judges.measure(model, sizes)
        stored.write_text(json.dumps({**found, "key": key}))
        print(job.model, job.out.name, file=sys.stderr, flush=True)
        return {**found, "version": version}


def _order(job: Job) -> tuple[str, str, str, str, int]:
    return job.model, job.setting, job.peer, job.method, job.seed


def markdown(results: dict[str, Any], ours: Mapping[str, Any]) -> str:
    """The tables, with where and when they were made.

    Args:
        results: of `gather`.
        ours: content of accuracy.json.
    """
    rows = results["rows"]
    versions = sorted({f"{row['peer']} {row['version']}" for row in rows})
    lines = [
        "# llm-compressor and AutoRound on the built-in models",
        "",
        f"{describe(results)} {listed(versions)}.",
        "",
        "KL as in accuracy.md, on the same held-out drawings: "
        "checkpoints that the libraries wrote, read and run by vlpress. docs/peers.md says what "
        "the methods are. A ratio below 1 means that vlpress is closer to the original; its rows "
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
            for part in sections(model, ours["models"][model]["rows"], of_model):
                lines += ["", part]
    return "\n".join(lines) + "\n"
