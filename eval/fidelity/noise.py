"""The noise floor: how far the base is from itself when only the arithmetic changes.

Another batch size or dtype moves logits in their last digits, and now and then an answer with
them. What quantization does is only news beyond that. A sample of whole questions is answered
again and read again by the same model in the other way; reports give a candidate's numbers also as
multiples of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...model.processing.processor import Processor
from ...model.qwen_vl import QwenVL
from ..answering.predictions import Record, read_predictions, read_records
from ..answering.runner import ModelResponder, OnProgress, answer_task
from ..results import StoredTask, read_run
from ..tasks import KINDS as BENCHMARKS
from ..tasks.task import Fields, Task, by_unit, is_broken, sample_units
from .divergences import summarize_fidelity
from .logprob_cache import LogProbReader
from .measure import FOLDER, measure_task

BATCH, DTYPE = KINDS = ("batch", "dtype")
NOISE = "noise"
UNITS = 32  # questions of each benchmark


def noise_sample(task: Task, units: int = UNITS) -> Task:
    """A part of a task: whole questions, spread over the categories, always the same ones."""
    sound = {u: rows for u, rows in by_unit(task.fields).items() if not any(map(is_broken, rows))}
    categories = {unit: rows[0]["category"] for unit, rows in sound.items()}
    chosen = sample_units(categories, units, seed=0)
    return replace(
        task,
        items=tuple(item for item in task.items if item.fields["unit"] in chosen),
        fields=tuple(fields for fields in task.fields if fields["unit"] in chosen),
    )


def measure_noise(
    run_dir: str | Path,
    tasks: Sequence[Task],
    model: QwenVL,
    processor: Processor,
    kind: str,
    *,
    batch_size: int,
    units: int = UNITS,
    on_progress: OnProgress | None = None,
) -> None:
    """Measure the base against what it said and expected itself; resumes.

    Args:
        run_dir: the base's finished evaluation, with its log-probabilities.
        tasks: the same benchmarks.
        model: the base, or the base in another dtype.
        processor: of the base.
        kind: what was changed: `BATCH` or `DTYPE`.
        batch_size: prompts per batch now.
        units: questions of each benchmark.
        on_progress: told after every batch.

    Raises:
        FileNotFoundError: the base's log-probabilities were not kept.
        ValueError: measured before with another setup.
    """
    base = read_run(run_dir)
    for task in tasks:
        stored = base.tasks[task.name]
        part = noise_sample(task, units)
        folder = _folder(stored, kind)
        folder.mkdir(parents=True, exist_ok=True)
        changed = {
            "kind": kind,
            "batch_size": batch_size,
            "dtype": str(model.dtype).removeprefix("torch."),
            "units": units,
        }
        setup = {**base.fingerprint, "task": dict(task.fingerprint), NOISE: changed}
        answer_task(
            part,
            ModelResponder(model, processor),
            folder / "predictions.jsonl",
            setup,
            batch_size=batch_size,
            on_progress=on_progress,
        )
        measure_task(
            part,
            model,
            processor,
            stored.predictions,
            LogProbReader(stored.folder / FOLDER),
            folder / "fidelity.jsonl",
            setup,
            batch_size=batch_size,
            on_progress=on_progress,
        )


def _folder(task: StoredTask, kind: str) -> Path:
    return task.folder / NOISE / kind


def read_noise(
    tasks: Iterable[StoredTask], kl_kind: str | None = None
) -> dict[str, dict[str, Any]]:
    """What was measured, by what was changed; benchmarks that were not measured are left out.

    Args:
        tasks: of the base's run.
        kl_kind: of the divergences that it will stand beside; None is what was measured.

    Returns:
        For each kind `batch_size` and `dtype` (the changed setup), `units` and `flips` (questions
        that became right or wrong), `answers` and `changed_answers` (rows whose text changed), and
        `fidelity`, see `summarize_fidelity`.

    Raises:
        ValueError: a file is damaged.
    """
    stored, found = list(tasks), {}
    for kind in KINDS:
        parts = [part for task in stored if (part := _read(task, kind)) is not None]
        if parts:
            counts = ("units", "flips", "answers", "changed_answers")
            found[kind] = {
                **parts[0].setup,
                **{key: sum(part.counts[key] for part in parts) for key in counts},
                "fidelity": summarize_fidelity([r for p in parts for r in p.records], kl_kind),
            }
    return found


@dataclass(frozen=True)
class _Part:
    """What was measured of one benchmark."""

    setup: Mapping[str, Any]
    counts: Mapping[str, int]
    records: Sequence[Record]


def _read(task: StoredTask, kind: str) -> _Part | None:
    """None if it was not measured, or not to the end."""
    folder = _folder(task, kind)
    if not (folder / "fidelity.jsonl").is_file():
        return None
    header, records = read_records(folder / "fidelity.jsonl", "fidelity")
    again = {k: p.prediction for k, p in read_predictions(folder / "predictions.jsonl").items()}
    items = [item for item in task.items if item["id"] in again]
    if set(again) != set(records) or any(key not in task.predictions for key in again):
        return None
    before = {key: task.predictions[key].prediction for key in again}
    counts = {
        "units": len(by_unit(items)),
        "flips": _flips(task, items, before, again),
        "answers": len(items),
        "changed_answers": sum(before[i["id"]] != again[i["id"]] for i in items),
    }
    setup = {key: header[NOISE][key] for key in ("batch_size", "dtype")}
    return _Part(setup, counts, list(records.values()))


def _flips(
    task: StoredTask,
    items: Sequence[Fields],
    before: Mapping[str, str],
    again: Mapping[str, str],
) -> int:
    score: Callable[..., Any] = BENCHMARKS[task.info["kind"]].score
    left, right = (score(items, said, task.info["profile"]).units for said in (before, again))
    return sum(a.correct != b.correct for a, b in zip(left, right, strict=True))


def multiples(candidate: Mapping[str, Any], noise: Mapping[str, Any]) -> dict[str, float | None]:
    """A candidate's divergence as multiples of the noise; None where there is no noise.

    Args:
        candidate: `summarize_fidelity` of the candidate.
        noise: the same of the base against itself.
    """
    return {
        "kl_mean": _ratio(candidate["kl_mean"], noise["kl_mean"]),
        "kl_p99": _ratio(candidate["kl_p99"], noise["kl_p99"]),
        "top1_disagreement": _ratio(1 - candidate["top1_agreement"], 1 - noise["top1_agreement"]),
        "rms_dp": _ratio(candidate["rms_dp"], noise["rms_dp"]),
    }


# Below these the base agrees with itself to the digits that are kept: a ratio would mean nothing.
RESOLUTION = 1e-6


def _ratio(value: float, floor: float) -> float | None:
    return value / floor if floor > RESOLUTION else None
