"""vLLM serves a checkpoint of vlpress over HTTP, and `vlpress eval --endpoint` asks it.

The same questions go to the checkpoint in this process; `vlpress compare --across-engines` must
accept the two runs.
"""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import with_server

import vlpress
from vlpress.eval.config import BUILTIN_BENCHES
from vlpress.eval.results import read_run

from .comparison import LIMIT, STYLE
from .jobs import WORKERS, AnswerRow, Case, Worker, clean_environment

SERVER = WORKERS / "vllm_server.py"
NAME = "candidate"
BATCH = 8
QUESTIONS: dict[str, Any] = {
    "bench": BUILTIN_BENCHES,
    "limit": LIMIT,
    "batch_size": BATCH,
    "prompt_style": STYLE,
}
PIXELS: dict[str, dict[str, Any]] = {
    "model": {},
    "request": {"bench": ["builtin-ocrbench"], "pixels": "vlmevalkit"},
}
"""Options of the evaluation by the origin of the bounds of an image's area."""


def compare(
    worker: Worker, case: Case, folder: Path, work: Path, version: str
) -> Iterator[AnswerRow]:
    """Evaluate a checkpoint here and over HTTP, and compare the stored runs.

    Args:
        worker: its interpreter and environment.
        case: the checkpoint's format and recipe.
        folder: the checkpoint.
        work: where runs, report and the server's log go.
        version: the engine's version.

    Yields:
        A row for each entry of `PIXELS`.
    """
    with serving(worker, folder, work) as url:
        for name, options in PIXELS.items():
            questions = {**QUESTIONS, **options}
            local, served = work / f"local-{name}", work / f"served-{name}"
            for earlier in (local, served):
                shutil.rmtree(earlier, ignore_errors=True)
            vlpress.evaluate(folder, local, **questions, device="cpu", dtype="fp32")
            vlpress.evaluate(out=served, endpoint=url, served_model=NAME, **questions)
            report = vlpress.compare(local, served, work / f"report-{name}", across_engines=True)
            runs = read_run(local), read_run(served)
            benchmarks = with_server.compare_runs(*runs, lambda *_: math.inf)
            described = f"compare --across-engines: {report['verdict']}"
            yield make_row(worker, case, version, f"pixels of the {name}", benchmarks, described)


def make_row(
    worker: Worker,
    case: Case,
    version: str,
    pixels: str,
    benchmarks: Mapping[str, Mapping[str, Any]],
    compared: str,
) -> AnswerRow:
    """One row for all benchmarks; answers, lengths and scores must be equal."""
    entries = benchmarks.values()
    scores = "/".join(f"{entry['served']:.1f}" for entry in entries)
    local = "/".join(f"{entry['local']:.1f}" for entry in entries)
    return AnswerRow(
        engine=worker.engine,
        version=version,
        model="tiny",
        format=case.format,
        recipe=case.recipe,
        dtype=f"{case.dtype}, over HTTP, {pixels}",
        kernels="as offline",
        questions=sum(entry["items"] for entry in entries),
        same_answers=sum(entry["same_answers"] for entry in entries),
        same_prompt_lengths=sum(entry["same_prompt_lengths"] for entry in entries),
        difference=None,
        bound=None,
        result=f"scores {scores}, vlpress {local}; {compared}",
        passed=all(entry["passed"] for entry in entries),
    )


@contextmanager
def serving(worker: Worker, folder: Path, work: Path) -> Iterator[str]:
    """Run the server with a checkpoint; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [worker.python, SERVER, "--model", folder, "--served-model-name", NAME]
    command += ["--host", "127.0.0.1", "--port", port, "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", 4096, "--max-num-seqs", BATCH, "--max-logprobs", 20]
    command += ["--limit-mm-per-prompt", json.dumps({"image": 8, "video": 0})]
    command += ["--trust-request-mm-kwargs"]  # or `mm_processor_kwargs` of a request is refused
    log = work / "server.log"
    with log.open("w", encoding="utf-8") as output:
        server = subprocess.Popen(
            list(map(str, command)),
            env=clean_environment(worker.environment),
            cwd=work,
            stdout=output,
            stderr=output,
        )
        try:
            with_server.wait_for(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()
