"""Evaluate one model: answer every task, score it, and measure its distance from a reference.

Everything lands in one folder (see `results.py`). Calling again with the same setup resumes, and
another setup is refused.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..bench.machine_load import LoadMeter, joined_load
from ..common.atomic import write_json, write_text
from ..common.checksum import digest_bytes
from ..common.differences import differences, refuse_difference
from ..common.distributed import SINGLE_PROCESS, Communicator, broadcast_result, rank_zero_first
from ..model.config import read_checkpoint_json
from ..model.processing.processor import Processor
from ..model.qwen_vl import QwenVL
from ..quant.checkpoint.formats.checkpoint import REPORT_FILE
from ..quant.checkpoint.loading import open_model, resolve_folder
from .answering.runner import ModelResponder, OnProgress, Responder, answer_task
from .fidelity.divergences import summarize_fidelity
from .fidelity.logprob_cache import LogProbReader
from .fidelity.measure import FOLDER as LOGPROBS
from .fidelity.measure import keep_logprobs, measure_task
from .fidelity.perplexity import FILE as TEXT
from .fidelity.perplexity import measure_text
from .fidelity.teacher_forcing import ANSWER_TOKENS
from .fingerprint import (
    folder_identity,
    run_fingerprint,
    setup_differences,
    weight_bytes,
    weight_count,
)
from .report.thumbnails import store_pictures
from .results import (
    QUANTIZATION,
    RUN_SCHEMA,
    SCHEMA,
    StoredRun,
    read_fidelity,
    read_info,
    read_run,
    speed,
    summarize,
    write_info,
)
from .tasks.task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found; `out_dir` holds all of it."""

    out_dir: Path
    run: Mapping[str, Any]  # run.json
    benchmarks: Mapping[str, Mapping[str, Any]]  # name -> score, n, categories, health, ...
    fidelity: Mapping[str, Mapping[str, Any]] | None  # name -> divergence from the reference

    def to_dict(self) -> dict[str, Any]:
        """A JSON value, as `scores.json` holds it."""
        scores = {
            "schema": SCHEMA,
            "model": self.run["model"]["name"],
            "benchmarks": dict(self.benchmarks),
            "fidelity": None if self.fidelity is None else dict(self.fidelity),
            "speed": self.run["speed"],
            "memory": self.run["memory"],
        }
        return scores | ({"endpoint": self.run["endpoint"]} if "endpoint" in self.run else {})


def evaluate(
    model: QwenVL,
    processor: Processor,
    tasks: Sequence[Task],
    out_dir: str | Path,
    *,
    batch_size: int = 8,
    reference: str | Path | None = None,
    is_reference: bool = False,
    text: str | None = None,
    name: str | None = None,
    source: str | Path | None = None,
    seed: int = 0,
    fingerprint_extra: Mapping[str, Any] | None = None,
    on_progress: OnProgress | None = None,
    responder: Responder | None = None,
    comm: Communicator = SINGLE_PROCESS,
) -> EvalResult:
    """Evaluate a model on tasks and store everything.

    Args:
        model: in eval mode.
        processor: prepares its inputs.
        tasks: opened by `open_task`, each at most once.
        out_dir: made if absent, resumed if it holds the same setup.
        batch_size: prompts per batch.
        reference: folder of the original model's finished evaluation of the same tasks; adds the
            divergence from it. What the original expected is kept there; if it is not yet, the
            model that the folder names is opened for that.
        is_reference: others will be measured against this model: keep what it expects at once.
        text: read for its perplexity, see `perplexity`.
        name: what reports call the model, and how it can be opened again.
        source: the checkpoint folder, for its identity and size; None takes both from memory.
        seed: recorded in the fingerprint.
        fingerprint_extra: further parts of the setup.
        on_progress: told after every batch.
        responder: answers in the model's place, such as a served copy of it.
        comm: who shares the batches; the first process writes.

    Raises:
        FileNotFoundError: the reference is no evaluation folder.
        ValueError: the folder or the reference was made with another setup, or the reference's
            model is gone or has changed.
    """
    refuse_repeated(tasks)
    out, folder = Path(out_dir), None if source is None else Path(source)
    setup = run_fingerprint(
        model,
        processor,
        batch_size=batch_size,
        seed=seed,
        source=folder,
        extra=fingerprint_extra,
    )
    info = broadcast_result(comm, lambda: open_run(out, setup, tasks))
    info["model"] = {
        "name": name or str(source or "model"),
        "family": model.config.family,
        "bytes": weight_bytes(model, folder),
        "weights": weight_count(model),
    }
    base = None
    if reference is not None:
        base = rank_zero_first(comm, lambda: _read_reference(Path(reference), setup, tasks))
    if base is not None and not _is_kept(base, tasks):
        find_reference(base)  # before hours of answering, not after

    def begin() -> None:
        write_items(out, info, tasks)
        _keep_record(out, folder)

    broadcast_result(comm, begin)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    responder = responder or ModelResponder(model, processor)
    is_new, meter = not is_answered(out, tasks), LoadMeter()
    shared: dict[str, Any] = {"on_progress": on_progress, "comm": comm}
    batched = {"batch_size": batch_size, **shared}
    for task in tasks:
        answer_task(
            task,
            responder,
            out / task.name / "predictions.jsonl",
            {**setup, "task": dict(task.fingerprint)},
            **batched,
        )
    if is_new:
        info["load"] = joined_load(info.get("load"), meter.read())
    if text is not None:
        measure_text(text, model, processor, out / TEXT, setup, **shared)
    info["memory"] = _memory(model, info.get("memory"))
    if is_reference:
        _keep(read_run(out), tasks, model, processor, batched)
    if base is not None:
        if not rank_zero_first(comm, lambda: _is_kept(base, tasks)):
            original = open_model(find_reference(base), device=model.device, dtype=model.dtype)
            _keep(base, tasks, original, processor, batched)
            del original
        _measure(out, tasks, base, model, processor, setup, batched)
    found = broadcast_result(comm, lambda: vars(finish(out, info)) | {"out_dir": None})
    return EvalResult(**{**found, "out_dir": out})


def refuse_repeated(tasks: Sequence[Task]) -> None:
    """Refuse a benchmark that is given twice.

    Raises:
        ValueError: one is.
    """
    if repeated := {t.name for t in tasks if sum(o.name == t.name for o in tasks) > 1}:
        raise ValueError(f"{', '.join(sorted(repeated))} is given twice; give each benchmark once")


def open_run(out: Path, setup: dict[str, Any], tasks: Sequence[Task]) -> dict[str, Any]:
    """The folder's run.json with this call's tasks added, or a fresh one.

    Raises:
        ValueError: the folder or a task in it was made with another setup.
    """
    info: dict[str, Any] = {"schema": RUN_SCHEMA, "fingerprint": setup, "tasks": {}}
    if (out / "run.json").is_file():
        info = read_info(out)
        refuse_difference(out, info["fingerprint"], setup)
    for task in tasks:
        entry: dict[str, Any] = {
            "kind": task.kind,
            "metric": task.metric,
            "profile": task.profile,
            "synthetic": task.synthetic,
            "notes": list(task.notes),
            "fingerprint": dict(task.fingerprint),
        }
        if task.name in info["tasks"]:
            known = info["tasks"][task.name]["fingerprint"]
            refuse_difference(out / task.name, known, entry["fingerprint"])
        info["tasks"][task.name] = entry
    return info


def is_answered(out: Path, tasks: Sequence[Task]) -> bool:
    """Whether a run folder, begun by `write_items`, holds an answer to every question already."""
    stored = read_run(out).tasks
    return all(stored[task.name].is_complete for task in tasks)


def write_items(out: Path, info: dict[str, Any], tasks: Sequence[Task]) -> None:
    """Write what scoring needs of the questions, and `run.json`, before the first answer."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "run.json").is_file():
        # First of all, so that a kill never leaves a folder that is not known as an evaluation.
        write_info(out, {**info, "tasks": {}})
    for task in tasks:
        folder = out / task.name
        folder.mkdir(parents=True, exist_ok=True)
        names = store_pictures(task, folder)
        items = [{**fields, "pictures": names.get(fields["id"], [])} for fields in task.fields]
        lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in items]
        text = "".join(lines)
        write_text(folder / "items.jsonl", text)
        info["tasks"][task.name]["items_sha256"] = digest_bytes(
            text.encode("utf-8", "backslashreplace")
        )
    write_info(out, info)


def _keep_record(out: Path, folder: Path | None) -> None:
    """Copy what the checkpoint says about its layers: the report needs no checkpoint."""
    if folder is not None and (folder / REPORT_FILE).is_file():
        write_json(out / QUANTIZATION, read_checkpoint_json(folder / REPORT_FILE))


def _read_reference(path: Path, setup: Mapping[str, Any], tasks: Sequence[Task]) -> StoredRun:
    base = read_run(path)
    if "engine" in base.fingerprint:
        raise ValueError(
            f"{path} was answered by a server; the divergence needs the original model itself: "
            "evaluate it in this process and give that folder"
        )
    changed = setup_differences(base.fingerprint, setup)
    for task in tasks:
        if task.name not in base.tasks:
            raise ValueError(f"{path} has no {task.name}; evaluate the original on it first")
        known = base.tasks[task.name]
        changed += differences(known.info["fingerprint"], task.fingerprint)
        known.score()  # refuses an unfinished run
    if changed:
        raise ValueError(
            f"{path} was evaluated with another setup ({'; '.join(changed[:6])}); "
            "evaluate the original again with the same settings"
        )
    return base


def find_reference(base: StoredRun) -> Path:
    """Folder of the model that a reference was evaluated with, unchanged since."""
    try:
        folder = resolve_folder(base.name)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"{base.path} was made with the model {base.name}, which cannot be opened ({error}); "
            "put it back or evaluate the original again"
        ) from error
    known = base.fingerprint["model"]
    if "memory" not in known["files"] and folder_identity(folder) != known:
        raise ValueError(
            f"{base.path} was made with the model {base.name}, which has changed since; "
            "put it back or evaluate the original again"
        )
    return folder


def _is_kept(base: StoredRun, tasks: Sequence[Task]) -> bool:
    """Whether all that the base expected is on disk."""
    for task in tasks:
        try:
            kept = LogProbReader(base.tasks[task.name].folder / LOGPROBS)
        except (FileNotFoundError, ValueError):
            return False
        if not all(item.id in kept for item in task.items):
            return False
    return True


def _keep(
    base: StoredRun,
    tasks: Sequence[Task],
    model: QwenVL,
    processor: Processor,
    batched: Mapping[str, Any],
) -> None:
    """Have the base read its own answers."""
    for task in tasks:
        stored = base.tasks[task.name]
        keep_logprobs(
            task,
            model,
            processor,
            stored.predictions,
            stored.folder / LOGPROBS,
            {**base.fingerprint, "task": dict(task.fingerprint), "answer_tokens": ANSWER_TOKENS},
            **batched,
        )


def _measure(
    out: Path,
    tasks: Sequence[Task],
    base: StoredRun,
    model: QwenVL,
    processor: Processor,
    setup: Mapping[str, Any],
    batched: Mapping[str, Any],
) -> None:
    for task in tasks:
        stored = base.tasks[task.name]
        kept = LogProbReader(stored.folder / LOGPROBS)
        measure_task(
            task,
            model,
            processor,
            stored.predictions,
            kept,
            out / task.name / "fidelity.jsonl",
            {
                **setup,
                "task": dict(task.fingerprint),
                "reference": base.fingerprint["model"],
                "answer_tokens": ANSWER_TOKENS,
                "kl_kind": kept.kind,
            },
            **batched,
        )


def finish(out: Path, info: dict[str, Any]) -> EvalResult:
    """Score all finished tasks in the folder, those of earlier calls too, and sum up."""
    write_info(out, info)
    run = read_run(out)
    info["speed"] = speed(run)
    write_info(out, info)
    complete = {key: task for key, task in run.tasks.items() if task.is_complete}
    benchmarks = {key: summarize(task) for key, task in complete.items()}
    found = {}
    for key, task in complete.items():
        if (records := read_fidelity(task)) and (pooled := summarize_fidelity(records.values())):
            found[key] = pooled
    result = EvalResult(out, info, benchmarks, found or None)
    write_json(out / "scores.json", result.to_dict())
    _warn(benchmarks)
    return result


def _warn(benchmarks: Mapping[str, Mapping[str, Any]]) -> None:
    """Log every violated health rule; answers to blank images are expected to be guesses."""
    for name, entry in benchmarks.items():
        if not entry["blank_images"]:
            for reason in entry["health_reasons"]:
                logger.warning("%s: %s", name, reason["text"])


def _memory(model: QwenVL, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Peak since the process (CPU) or evaluation (GPU) began; resumed runs keep the larger."""
    if model.device.type == "cuda":
        kind = "most that the process held on the GPU meanwhile, other models included"
        peak = torch.cuda.max_memory_allocated(model.device)
    else:
        # 1024: Linux counts in KiB, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        kind = "most that the process ever held until then, other models and work included"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"kind": kind, "peak_bytes": max(peak, (before or {}).get("peak_bytes", 0))}
