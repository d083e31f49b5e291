"""Engines that answer questions: checkpoints, jobs of the engine's script, and rows.

An engine's script (`workers/`) runs in the engine's environment, without vlpress. It gets a list of
jobs, one per checkpoint, and writes one result each. Results are kept: a job whose checkpoint,
settings and scripts are unchanged is not repeated, and an interrupted run continues with the next.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import commands

from vlpress.eval.tasks.task import Item
from vlpress.model.loading import resolve_model
from vlpress.model.qwen_vl import QwenVL

from . import comparison
from .comparison import Agreement, Difference

WORKERS = Path(__file__).resolve().parents[1] / "workers"
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
NEWEST = 200
"""Characters of an error that a row shows."""


@dataclass(frozen=True)
class Model:
    """A source of checkpoints, and its questions."""

    name: str
    source: str | Path
    """Name or folder."""
    items: Mapping[str, Item]
    max_new_tokens: int


@dataclass(frozen=True)
class Case:
    """A checkpoint for an engine."""

    format: str
    """Format of `vlpress quantize`; `float` for the source itself."""
    recipe: str = ""
    dtype: str = "float32"
    eager: bool = True
    """Without compilation."""
    is_exported: bool = False
    """From the same recipe as gptq, by `vlpress export`."""
    deployment: str = ""
    """Format of another runtime in which the engine reads the checkpoint; empty: as it is."""
    refusal: str | None = None
    """Text of the error with which the engine refuses this checkpoint, as far as known."""
    int8: bool = False
    """Whether layers quantize activations, to int8 or FP8."""
    adapt: Callable[[QwenVL], object] | None = None
    """See `comparison.ask_vlpress`."""
    remark: str = ""

    def folder(self, made: Path) -> Path:
        """Name of its folder among the checkpoints of a model."""
        return made / self.format / Path(self.recipe).stem

    def name(self, model: str) -> str:
        """Name of its job."""
        compiled = "" if self.eager else "-compiled"
        read_as = f"{self.deployment}-" if self.deployment else ""
        name = f"{model}-{read_as}{self.format}-{Path(self.recipe).stem}-{self.dtype}{compiled}"
        return name.replace("/", "-")

    @property
    def described(self) -> str:
        """Formats in words."""
        return f"{self.deployment} of {self.format}" if self.deployment else self.format


@dataclass(frozen=True)
class AnswerRow:
    """One line of the table of answers."""

    engine: str
    version: str
    model: str
    format: str
    recipe: str
    dtype: str
    kernels: str
    """Implementation of the quantized layers, and stand-ins."""
    questions: int
    same_answers: int
    same_prompt_lengths: int
    difference: Difference | None
    bound: Difference | None
    result: str
    passed: bool


@dataclass(frozen=True)
class Worker:
    """An engine's script and environment."""

    engine: str
    python: Path
    scripts: Sequence[Path]
    """The script, then the files that it imports."""
    constraints: Path
    environment: Mapping[str, str]
    describe: Callable[[Mapping[str, Any]], str]
    """Formats the kernels of a result."""
    version: Callable[[Mapping[str, str]], str]
    """Formats the versions of a result."""

    def run(self, jobs: Sequence[Mapping[str, Any]], work: Path) -> None:
        """Run the jobs that have no result yet, or an error that is not the known refusal."""
        due = [job for job in jobs if is_due(job)]
        if not due:
            return
        path = work / "jobs.json"
        path.write_text(json.dumps(due, indent=2), encoding="utf-8")
        command = [str(self.python), str(self.scripts[0]), str(path)]
        subprocess.run(command, env=clean_environment(self.environment), cwd=work, check=True)

    def key(self, checkpoint: Path, settings: Mapping[str, Any]) -> str:
        """Digest of everything that a result depends on."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        weights = sorted(p for p in checkpoint.iterdir() if p.suffix in (".safetensors", ".json"))
        for path in [*self.scripts, self.constraints, *weights]:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


def clean_environment(more: Mapping[str, str]) -> dict[str, str]:
    """Environment variables without those of this process's Python, and others in addition."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**inherited, **more}


def parse(description: str | None) -> argparse.Namespace:
    """Parse the command line shared with the other scripts of `run.py`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--made", type=Path, required=True, help="checkpoints, FORMAT/RECIPE each")
    parser.add_argument("--work", type=Path, required=True, help="where the engine may write")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the rows")
    parser.add_argument("--model", help="rows of this built-in model (default those of the others)")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    return options


def make_checkpoint(case: Case, source: str | Path, made: Path) -> Path:
    """Return the folder of a case; quantized again only if vlpress or the recipe has changed."""
    if case.format == "float":
        return resolve_model(str(source))
    folder = case.folder(made)
    if case.is_exported:
        origin = make_checkpoint(Case("gptq", case.recipe), source, made)
        commands.export(origin, case.format, folder)
    else:
        commands.quantize(source, case.recipe, case.format, folder)
    return folder


def readable(case: Case, checkpoint: Path, work: Path) -> Path:
    """Return the folder that the engine reads: the checkpoint, or an export of it."""
    if not case.deployment:
        return checkpoint
    folder = work / case.deployment / checkpoint.parent.name / checkpoint.name
    commands.export(checkpoint, case.deployment, folder)
    return folder


def count_layers(result: Mapping[str, Any]) -> str:
    """Describe a worker's result by the number of layers of each kind."""
    return ", ".join(f"{count} {kind}" for kind, count in result.get("layers", {}).items())


def ask(
    worker: Worker, model: Model, cases: Sequence[Case], made: Path, work: Path
) -> list[AnswerRow]:
    """Make the checkpoints, let the engine and vlpress answer, compare."""
    question_file = work / f"questions-{model.name}.json"
    comparison.write_questions(model.items, question_file)
    digest = hashlib.sha256(question_file.read_bytes()).hexdigest()
    jobs = []
    for case in cases:
        checkpoint = make_checkpoint(case, model.source, made)
        folder = readable(case, checkpoint, work)
        settings = {
            "dtype": case.dtype,
            "eager": case.eager,
            "max_new_tokens": model.max_new_tokens,
        }
        jobs.append(
            {
                "name": case.name(model.name),
                "model": str(folder),
                "checkpoint": str(checkpoint),
                "questions": str(question_file),
                "out": str(work / f"{case.name(model.name)}.json"),
                "refusal": case.refusal,
                "key": worker.key(folder, {**settings, "questions": digest}),
                **settings,
            }
        )
    worker.run(jobs, work)
    rows = []
    for case, job in zip(cases, jobs, strict=True):
        rows.append(make_row(worker, model, case, job))
        print(f"{'pass' if rows[-1].passed else 'FAIL'}  {job['name']}: {rows[-1]}", flush=True)
    return rows


def read_result(job: Mapping[str, Any]) -> dict[str, Any] | None:
    """Result of a job; None if there is none, or it is one of other inputs."""
    path = Path(job["out"])
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result if result["key"] == job["key"] else None


def is_due(job: Mapping[str, Any]) -> bool:
    """Whether a job must run: no result, or an error that may not occur again."""
    result = read_result(job)
    if result is None or "error" not in result:
        return result is None
    return not judge_refusal(job["refusal"], result["error"])[1]


def make_row(worker: Worker, model: Model, case: Case, job: Mapping[str, Any]) -> AnswerRow:
    """Compare the result of a job with vlpress."""
    result = read_result(job) or {"error": "the script wrote no result", "versions": {}}
    agreement = None
    if "error" in result:
        text, passed = judge_refusal(case.refusal, result["error"])
    else:
        agreement = comparison.compare(
            reference(model, case, job), comparison.read_answers(result["answers"])
        )
        text, passed = judge(case, agreement)
    return AnswerRow(
        engine=worker.engine,
        version=worker.version(result["versions"]),
        model=model.name,
        format=case.described,
        recipe=Path(case.recipe).stem,
        dtype=case.dtype if case.eager else f"{case.dtype}, compiled",
        kernels=worker.describe(result),
        questions=len(model.items),
        same_answers=agreement.same_answers if agreement else 0,
        same_prompt_lengths=agreement.same_prompt_lengths if agreement else 0,
        difference=agreement.difference if agreement else None,
        bound=agreement.bound if agreement else None,
        result=text,
        passed=passed,
    )


def reference(model: Model, case: Case, job: Mapping[str, Any]) -> comparison.Reference:
    """Answers of vlpress to the questions of a job."""
    return comparison.ask_vlpress(
        Path(job["checkpoint"]),
        model.items,
        dtype=DTYPES[case.dtype],
        max_new_tokens=model.max_new_tokens,
        int8=case.int8,
        adapt=case.adapt,
    )


def judge(case: Case, agreement: Agreement) -> tuple[str, bool]:
    """Result in words of a checkpoint that the engine loads, and whether it passes."""
    if case.refusal is not None:
        return f"loads, although a refusal is expected: {case.refusal}", False
    equal = "as vlpress, but for ties" if agreement.ties else "as vlpress"
    words = [equal if agreement.passed else "differs", *agreement.examples]
    return "; ".join([*words, case.remark] if case.remark else words), agreement.passed


def judge_refusal(expected: str | None, error: str) -> tuple[str, bool]:
    """Result in words of a checkpoint that the engine refuses, and whether that is known."""
    if expected is not None and expected in error:
        return f"refused, as known: {expected}", True
    line = " ".join(error.split())
    return line if len(line) <= NEWEST else f"...{line[-NEWEST:]}", False


def write_rows(rows: Sequence[AnswerRow], path: Path) -> None:
    """Write rows as JSON."""
    text = json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
