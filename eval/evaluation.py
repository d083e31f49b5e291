"""Evaluation of one model: answers, scores, and divergence from a reference.

All results are stored in one folder (see `results`). Calling again with the same setup resumes,
other questions extend it (see `extension`), and another setup is refused.
"""

from __future__ import annotations

import json
import logging
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
from ..common.progress import peak_memory
from ..model.config import read_checkpoint_json
from ..model.processing.processor import Processor
from ..model.qwen_vl import QwenVL
from ..quant.checkpoint.loading import open_model
from ..quant.checkpoint.safetensors_folder.shards import REPORT_FILE
from ..quant.runtime.description import described_rule, described_type
from .answering.batches import OnProgress
from .answering.runner import ModelResponder, Responder, answer_task
from .answering.sampling import GREEDY, Decoding
from .answering.vision_features import FeatureCache
from .config import BATCH_SIZE
from .extension import Rounds, assign_rounds, refuse_partial_fidelity, with_rounds
from .fidelity.divergences import summarize_fidelity
from .fidelity.drafts import measure_drafts
from .fidelity.kv_ranges import measure_kv_ranges
from .fidelity.perplexity import FILE as TEXT
from .fidelity.perplexity import measure_text
from .fidelity.reference import (
    find_reference,
    has_logprobs,
    measure_fidelity,
    read_reference,
    store_reference_logprobs,
)
from .fingerprint import (
    THREADS,
    VISUAL_TOKENS,
    VOCABULARY,
    answer_setup,
    count_part_bytes,
    count_weight_bytes,
    count_weights,
    largest_area,
    run_fingerprint,
    task_settings,
    uses_adapter,
    without_threads,
)
from .report.provenance import read_generation_settings
from .report.thumbnails import store_thumbnails
from .results import (
    ITEMS_DIGESTS,
    PROMPT,
    QUANTIZATION,
    REPLACED,
    ROUND,
    RUN_SCHEMA,
    SCHEMA,
    StoredRun,
    read_fidelity,
    read_info,
    read_run,
    summarize_speed,
    summarize_task,
    write_info,
)
from .tasks.askable import mark_unaskable, with_input_sizes
from .tasks.task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvalResult:
    """Result of an evaluation; all of it is stored in `out_dir`."""

    out_dir: Path
    run: Mapping[str, Any]  # run.json
    benchmarks: Mapping[str, Mapping[str, Any]]  # name -> score, n, categories, health, ...
    fidelity: Mapping[str, Mapping[str, Any]] | None  # name -> divergence from the reference

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `scores.json`."""
        scores = {
            "schema": SCHEMA,
            "model": self.run["model"]["name"],
            "benchmarks": dict(self.benchmarks),
            "fidelity": None if self.fidelity is None else dict(self.fidelity),
            "speed": self.run["speed"],
            "memory": self.run["memory"],
        }
        return scores | ({"endpoint": self.run["endpoint"]} if "endpoint" in self.run else {})


def evaluate_model(
    model: QwenVL,
    processor: Processor,
    tasks: Sequence[Task],
    out_dir: str | Path,
    *,
    batch_size: int = BATCH_SIZE,
    reference: str | Path | None = None,
    across_pixels: bool = False,
    is_reference: bool = False,
    text: str | None = None,
    name: str | None = None,
    source: str | Path | None = None,
    seed: int = 0,
    decoding: Decoding = GREEDY,
    are_checked: bool = False,
    features: FeatureCache | None = None,
    on_progress: OnProgress | None = None,
    comm: Communicator = SINGLE_PROCESS,
) -> EvalResult:
    """Evaluate a model on tasks and store the results.

    Args:
        model: in eval mode.
        processor: processor of the model.
        tasks: opened by `open_task`, each at most once.
        out_dir: created if missing, resumed if it has the same setup; stored answers to questions
            of the tasks are kept.
        batch_size: prompts per batch.
        reference: folder of the original model's finished evaluation of the same tasks; adds the
            divergence from it. The log-probabilities of the original are stored there; if they
            are missing, the model named by the folder is loaded to compute them, with the KV cache
            of its evaluation.
        across_pixels: whether the reference may have another largest area of an image.
        is_reference: store the log-probabilities of this model for later comparisons.
        text: text for the perplexity, see `perplexity`.
        name: name of the model in reports, by which it can be loaded again.
        source: checkpoint folder, for the model's identity and size; None: take them from memory.
        seed: recorded in the fingerprint.
        decoding: of the answers.
        are_checked: whether `mark_unaskable` has marked the tasks' rows for this processor;
            otherwise it is applied here.
        features: cache of image features of this model, to be shared with later measurements;
            None: a new one.
        on_progress: called after every batch.
        comm: ranks that share the batches; rank 0 writes.

    Raises:
        FileNotFoundError: the reference is not an evaluation folder.
        ValueError: the folder or the reference has another setup, the reference's model is missing
            or has changed, or `features` belongs to another model.
    """
    refuse_repeated(tasks)
    if not are_checked:
        tasks = [mark_unaskable(task, processor) for task in tasks]
    tasks = [with_input_sizes(task, processor) for task in tasks]
    if features is None:
        features = FeatureCache(model, processor)
    if features.model is not model:
        raise ValueError("the feature cache belongs to another model; create one for this model")
    out, folder = Path(out_dir), None if source is None else Path(source)
    setup = run_fingerprint(
        model, processor, batch_size=batch_size, seed=seed, source=folder, decoding=decoding
    )
    base = None
    if reference is not None:
        base = rank_zero_first(
            comm,
            lambda: read_reference(Path(reference), setup, tasks, across_pixels=across_pixels),
        )
    info, rounds = broadcast_result(comm, lambda: open_run(out, setup, tasks, base))
    tasks = with_rounds(tasks, rounds)
    info["model"] = {
        "name": name or str(source or "model"),
        "family": model.config.family,
        "bytes": count_weight_bytes(model, folder),
        "weights": count_weights(model),
        "parts": count_part_bytes(model, folder),
        "generation_config": read_generation_settings(folder),
    }
    if base is not None and not has_logprobs(base, tasks):
        find_reference(base)  # before hours of answering, not after

    def begin() -> None:
        write_items(out, info, tasks)
        _copy_record(out, folder)

    broadcast_result(comm, begin)
    if model.cache_type != "model":
        info["kv_cache"] = broadcast_result(comm, lambda: measure_kv_ranges(features, tasks))
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    batching: dict[str, Any] = {
        "batch_size": batch_size,
        "on_progress": on_progress,
        "comm": comm,
    }
    responder = ModelResponder(features, decoding)
    answer_tasks(out, info, tasks, responder, setup, decoding=decoding, **batching)
    if folder is not None and model.config.text.mtp_layers:
        info["drafts"] = broadcast_result(
            comm, lambda: _measure_drafts(out, features, folder, tasks)
        )
    if text is not None:
        text_setup = without_threads(setup)
        measure_text(
            text, model, processor, out / TEXT, text_setup, on_progress=on_progress, comm=comm
        )
    info["memory"] = _measure_memory(model, info.get("memory"))
    if is_reference:
        store_reference_logprobs(read_run(out), tasks, features, batching)
    if base is not None:
        if not rank_zero_first(comm, lambda: has_logprobs(base, tasks)):
            own = _open_reference(base, setup, model, processor)
            store_reference_logprobs(base, tasks, own, batching)
            del own
        measure_fidelity(out, tasks, base, features, setup, batching, folder)
    result = broadcast_result(comm, lambda: vars(finish(out, info)) | {"out_dir": None})
    return EvalResult(**{**result, "out_dir": out})


def _open_reference(
    base: StoredRun, setup: Mapping[str, Any], model: QwenVL, processor: Processor
) -> FeatureCache:
    """Open the original as its own evaluation read it: its vocabulary, its size of images.

    Args:
        base: the original's evaluation.
        setup: fingerprint of the candidate's.
        model: the candidate, for device and dtype.
        processor: of the candidate.

    Raises:
        ValueError: the original is missing or has changed.
    """
    folder = find_reference(base)
    original = open_model(
        folder,
        device=model.device,
        dtype=model.dtype,
        kv_cache=described_type(base.fingerprint.get("kv_cache")),
        reduce=described_rule(base.fingerprint.get(VISUAL_TOKENS)),
        adapter=uses_adapter(base.fingerprint),
    )
    area = largest_area(base.fingerprint) or processor.max_pixels
    if base.fingerprint.get(VOCABULARY) == setup.get(VOCABULARY):
        return FeatureCache(original, processor.with_max_pixels(area))
    own = Processor.from_folder(folder, min_pixels=processor.min_pixels, max_pixels=area)
    return FeatureCache(original, own)


def answer_tasks(
    out: Path,
    info: dict[str, Any],
    tasks: Sequence[Task],
    responder: Responder,
    setup: Mapping[str, Any],
    *,
    batch_size: int,
    decoding: Decoding = GREEDY,
    on_progress: OnProgress | None = None,
    comm: Communicator = SINGLE_PROCESS,
) -> None:
    """Answer all tasks of a run begun by `write_items`.

    Args:
        out: folder of the run.
        info: the run's `run.json`; gets the `load` of the machine if an answer was missing.
        tasks: the benchmarks.
        responder: the model.
        setup: fingerprint of the run.
        batch_size: items per batch.
        decoding: of the answers, which the responder applies.
        on_progress: called after every batch.
        comm: ranks that share the batches.

    Raises:
        ValueError: a predictions file has another setup.
    """
    # Read on rank 0 alone, which creates the files that the others would read while it does.
    is_new, meter = broadcast_result(comm, lambda: not is_answered(out, tasks)), LoadMeter()
    for task in tasks:
        answer_task(
            decoding.repeat(task),
            responder,
            out / task.name / "predictions.jsonl",
            answer_setup(setup, task),
            batch_size=batch_size,
            threads=setup.get(THREADS),
            on_progress=on_progress,
            comm=comm,
        )
    if is_new:
        info["load"] = joined_load(info.get("load"), meter.read())


def refuse_repeated(tasks: Sequence[Task]) -> None:
    """Refuse tasks with equal names.

    Raises:
        ValueError: a name is repeated.
    """
    if repeated := {t.name for t in tasks if sum(o.name == t.name for o in tasks) > 1}:
        raise ValueError(f"{', '.join(sorted(repeated))} is given twice; give each benchmark once")


def open_run(
    out: Path, setup: dict[str, Any], tasks: Sequence[Task], base: StoredRun | None = None
) -> tuple[dict[str, Any], Rounds]:
    """Return the folder's `run.json` with the tasks added, or a new one, and the items' rounds.

    Args:
        out: the folder.
        setup: fingerprint of the run.
        tasks: the benchmarks.
        base: the reference, see `assign_rounds`.

    Raises:
        ValueError: the folder or a task in it has another setup.
    """
    info: dict[str, Any] = {"schema": RUN_SCHEMA, "fingerprint": setup, "tasks": {}}
    if (out / "run.json").is_file():
        info = read_info(out)
        refuse_difference(out, without_threads(info["fingerprint"]), without_threads(setup))
        info["fingerprint"] = setup
        if base is None:
            refuse_partial_fidelity(out, tasks)
    for task in tasks:
        stored = info["tasks"].get(task.name)
        if stored is not None:
            settings = task_settings(stored["fingerprint"]), task_settings(task.fingerprint)
            refuse_difference(out / task.name, *settings)
        info["tasks"][task.name] = _task_entry(task, stored or {})
    return info, assign_rounds(out, tasks, base)


def _task_entry(task: Task, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of a task in `run.json`, with the digests of its stored items."""
    return {
        "kind": task.kind,
        "metric": task.metric,
        "profile": task.profile,
        "synthetic": task.synthetic,
        "notes": list(task.notes),
        "source": task.source,
        "fingerprint": dict(task.fingerprint),
        **{key: stored[key] for key in ITEMS_DIGESTS if key in stored},
    }


def is_answered(out: Path, tasks: Sequence[Task]) -> bool:
    """Whether a run folder begun by `write_items` has an answer to every question."""
    stored = read_run(out).tasks
    return all(stored[task.name].is_complete for task in tasks)


def write_items(out: Path, info: dict[str, Any], tasks: Sequence[Task]) -> None:
    """Write the items' fields for scoring, their thumbnails, and `run.json`.

    A kill at any point leaves a folder that can be read: with its old items or with the new ones.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "run.json").is_file():
        # First, so that a kill never leaves a folder that is not recognized as an evaluation.
        write_info(out, {**info, "tasks": {}})
    entries: dict[str, dict[str, Any]] = info["tasks"]
    texts = {task.name: _items_text(task, out / task.name) for task in tasks}
    meanwhile = {name: entry for name, entry in entries.items() if name not in texts}
    for name, text in texts.items():
        known = {entries[name].pop(key, None) for key in ITEMS_DIGESTS}
        entries[name]["items_sha256"] = digest_bytes(text.encode("utf-8", "backslashreplace"))
        path = out / name / "items.jsonl"
        digest = digest_bytes(path.read_bytes()) if path.is_file() else None
        if digest in known and digest is not None:
            meanwhile[name] = {**entries[name], REPLACED: digest}
    write_info(out, {**info, "tasks": meanwhile})
    for name, text in texts.items():
        write_text(out / name / "items.jsonl", text)
    write_info(out, info)


def _items_text(task: Task, folder: Path) -> str:
    """Return the content of `items.jsonl`; stores the thumbnails."""
    folder.mkdir(parents=True, exist_ok=True)
    names, digests = store_thumbnails(task, folder), task.digests
    lines = []
    for fields in task.fields:
        key = fields["id"]
        item = {**fields, "pictures": names.get(key, [])}
        if key in digests:
            item |= {PROMPT: digests[key], ROUND: task.rounds.get(key, 0)}
        lines.append(json.dumps(item, ensure_ascii=False) + "\n")
    return "".join(lines)


def _copy_record(out: Path, folder: Path | None) -> None:
    """Copy the checkpoint's record of its layers: the report needs no checkpoint."""
    if folder is not None and (folder / REPORT_FILE).is_file():
        write_json(out / QUANTIZATION, read_checkpoint_json(folder / REPORT_FILE))


def _measure_drafts(
    out: Path, features: FeatureCache, folder: Path, tasks: Sequence[Task]
) -> dict[str, Any] | None:
    """Measure the accepted drafts along the stored answers, see `measure_drafts`."""
    stored = read_run(out).tasks
    answers = [
        (item, stored[task.name].first[item.id])
        for task in tasks
        for item in task.items
        if item.id in stored[task.name].first
    ]
    return measure_drafts(features, folder, answers)


def finish(out: Path, info: dict[str, Any]) -> EvalResult:
    """Score all finished tasks in the folder, those of earlier calls included; store the scores."""
    write_info(out, info)
    run = read_run(out)
    info["speed"] = summarize_speed(run)
    write_info(out, info)
    complete = {key: task for key, task in run.tasks.items() if task.is_complete}
    benchmarks = {key: summarize_task(task) for key, task in complete.items()}
    fidelity_by_task = {}
    for key, task in complete.items():
        if (records := read_fidelity(task)) and (pooled := summarize_fidelity(records.values())):
            fidelity_by_task[key] = pooled
    result = EvalResult(out, info, benchmarks, fidelity_by_task or None)
    write_json(out / "scores.json", result.to_dict())
    _warn(benchmarks)
    return result


def refresh(out: Path, tasks: Sequence[Task]) -> None:
    """Score a complete evaluation again if its tasks have other rules or another description now.

    Args:
        out: folder of the evaluation.
        tasks: with the questions that are stored.
    """
    info = read_info(out)
    entries = {task.name: _task_entry(task, info["tasks"][task.name]) for task in tasks}
    if differences(info["tasks"], {**info["tasks"], **entries}):
        info["tasks"].update(entries)
        finish(out, info)


def _warn(benchmarks: Mapping[str, Mapping[str, Any]]) -> None:
    """Log health rules and warnings; answers to blank images are expected to be guesses."""
    for name, entry in benchmarks.items():
        if not entry["blank_images"]:
            for reason in entry["health_reasons"]:
                logger.warning("%s: %s", name, reason["text"])
            for text in entry["warnings"]:
                logger.warning("%s: %s", name, text)


def _measure_memory(model: QwenVL, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Measure the peak since the process (CPU) or evaluation (GPU) began.

    Args:
        model: the evaluated model; decides between CPU and GPU.
        before: measurement of an interrupted run; the larger peak counts.
    """
    if model.device.type == "cuda":
        kind = "most that the process held on the GPU meanwhile, other models included"
        peak = torch.cuda.max_memory_allocated(model.device)
    else:
        kind = "most that the process ever held until then, other models and work included"
        peak = peak_memory()
    return {"kind": kind, "peak_bytes": max(peak, (before or {}).get("peak_bytes", 0))}
