"""Shared part of the peers' scripts: run jobs, write checkpoint folders.

Runs in the peer's environment, without vlpress.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peers.settings import RECORD, Job, read_jobs
from transformers import AutoModelForImageTextToText

Quantize = Callable[[Job, Path], None]
"""Called with a job and an empty folder for its checkpoint."""


def main(description: str | None, quantize: Quantize) -> None:
    """Run all jobs; a failed job is recorded and the others continue."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--jobs", type=Path, required=True, help="file of settings.write_jobs")
    parser.add_argument("--failed", type=Path, required=True, help="JSON file for what failed")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    failed = {}
    for job in read_jobs(options.jobs):
        started = time.perf_counter()
        try:
            do(job, quantize)
        except Exception as error:  # libraries raise arbitrary exceptions
            traceback.print_exc()
            failed[job.out.name] = f"{type(error).__name__}: {error}"
        state = "failed" if job.out.name in failed else "made"
        print(f"== {state} {job.out.name}, {time.perf_counter() - started:.0f} s", flush=True)
    options.failed.write_text(json.dumps(failed, indent=1) + "\n", encoding="utf-8")


def do(job: Job, quantize: Quantize) -> None:
    """Write the folder of a job atomically."""
    partial = job.out.with_name(f".{job.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    torch.manual_seed(job.seed)
    quantize(job, partial)
    add_side_files(job.source, partial)
    record = {"made_from": job.made_from, "version": version(job.peer)}
    (partial / RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")
    shutil.rmtree(job.out, ignore_errors=True)
    partial.rename(job.out)


def load(source: Path) -> Any:
    """Load the float model in the dtype of its checkpoint."""
    return AutoModelForImageTextToText.from_pretrained(source, dtype="auto").eval()


def add_side_files(source: Path, out: Path) -> None:
    """Add the tokenizer and processor files that the library did not write."""
    for file in source.iterdir():
        if file.name.endswith(".index.json"):
            continue  # the index of the source's weights
        if file.suffix in (".json", ".jinja", ".txt") and not (out / file.name).exists():
            shutil.copyfile(file, out / file.name)
