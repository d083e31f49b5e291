"""Noise floor of the base: stored differences between runs that differ in arithmetic alone.

Another batch size or dtype changes logits in their last digits, and occasionally an answer.
Quantization matters only beyond that: reports give a candidate's numbers also as multiples of
these. `noise_floor` measures them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.atomic import write_json
from ...common.checksum import verify_checksum, with_checksum
from ..answering.predictions import Record, read_predictions, read_records
from ..results import StoredTask
from ..tasks import TASK_KINDS
from ..tasks.task import Fields, Task, by_unit
from .divergences import summarize_fidelity

BATCH, DTYPE = NOISE_KINDS = ("batch", "dtype")
NOISE = "noise"
SAMPLE = "sample.json"
UNITS = 32
"""Default number of questions of each benchmark."""

RESOLUTION = 1e-6
"""Smallest noise with a meaningful ratio; below it the base agrees with itself in all digits."""


def noise_folder(task: StoredTask, kind: str) -> Path:
    """Return the folder of a task's noise measurement."""
    return task.folder / NOISE / kind


def read_noise(
    tasks: Iterable[StoredTask], kl_kind: str | None = None
) -> dict[str, dict[str, Any]]:
    """Read the measurements by kind; benchmarks without a complete one are left out.

    Args:
        tasks: tasks of the base's run.
        kl_kind: kind of the divergences to compare with; None: the stored kind.

    Returns:
        For each kind `batch_size` and `dtype` (the changed setup), `units` and `flips` (questions
        whose correctness changed), `answers` and `changed_answers` (rows whose text changed), and
        `fidelity`, see `summarize_fidelity`.

    Raises:
        ValueError: a file is damaged.
    """
    stored, noise = list(tasks), {}
    for kind in NOISE_KINDS:
        parts = [part for task in stored if (part := _read(task, kind)) is not None]
        if parts:
            counts = ("units", "flips", "answers", "changed_answers")
            noise[kind] = {
                **parts[0].setup,
                **{key: sum(part.counts[key] for part in parts) for key in counts},
                "fidelity": summarize_fidelity([r for p in parts for r in p.records], kl_kind),
            }
    return noise


@dataclass(frozen=True)
class _TaskNoise:
    """Measurement of one benchmark."""

    setup: Mapping[str, Any]
    counts: Mapping[str, int]
    records: Sequence[Record]


def _read(task: StoredTask, kind: str) -> _TaskNoise | None:
    """Read one measurement; None if it is missing or incomplete."""
    folder = noise_folder(task, kind)
    if not (folder / "fidelity.jsonl").is_file():
        return None
    sample = _read_sample(folder, task)
    digests = {key: value for key, value in task.digests.items() if key in sample}
    forced = {key: value for key, value in task.forced_digests.items() if key in sample}
    header, records = read_records(folder / "fidelity.jsonl", "fidelity", forced)
    predictions = read_predictions(folder / "predictions.jsonl", digests)
    after = {prediction.id: prediction.prediction for prediction in predictions.values()}
    items = [item for item in task.items if item["id"] in after]
    is_complete = bool(sample) and sample == set(after) == set(records)
    if not is_complete or any(key not in task.first for key in after):
        return None
    before = {key: task.first[key].prediction for key in after}
    counts = {
        "units": len(by_unit(items)),
        "flips": _count_flips(task, items, before, after),
        "answers": len(items),
        "changed_answers": sum(before[i["id"]] != after[i["id"]] for i in items),
    }
    setup = {key: header[NOISE][key] for key in ("batch_size", "dtype")}
    return _TaskNoise(setup, counts, list(records.values()))


def write_sample(folder: Path, task: Task, sample: Task) -> None:
    """Store which items of a task a measurement is made on, before it begins.

    Args:
        folder: of the measurement.
        task: all items.
        sample: a sample of them.
    """
    content = {"of": task.fingerprint["items"], "items": [item.id for item in sample.items]}
    write_json(folder / SAMPLE, with_checksum(content))


def _read_sample(folder: Path, task: StoredTask) -> set[str]:
    """Read the ids of a sample; empty if it is of other items than the task now has.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / SAMPLE
    if not path.is_file():
        return set()
    try:
        content = verify_checksum(dict(json.loads(path.read_bytes())), str(path))
        is_current = content["of"] == task.info["fingerprint"]["items"]
        return set(content["items"]) if is_current else set()
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged; delete {folder} and evaluate again") from error


def _count_flips(
    task: StoredTask,
    items: Sequence[Fields],
    before: Mapping[str, str],
    after: Mapping[str, str],
) -> int:
    score: Callable[..., Any] = TASK_KINDS[task.info["kind"]].score
    first, second = (score(items, texts, task.info["profile"]).units for texts in (before, after))
    return sum(a.correct != b.correct for a, b in zip(first, second, strict=True))


def multiples(candidate: Mapping[str, Any], noise: Mapping[str, Any]) -> dict[str, float | None]:
    """Divide a candidate's divergence by the noise; None where there is no noise.

    Args:
        candidate: `summarize_fidelity` of the candidate.
        noise: `summarize_fidelity` of the base against itself.
    """
    return {
        "kl_mean": _ratio(candidate["kl_mean"], noise["kl_mean"]),
        "kl_p99": _ratio(candidate["kl_p99"], noise["kl_p99"]),
        "top1_disagreement": _ratio(1 - candidate["top1_agreement"], 1 - noise["top1_agreement"]),
        "rms_dp": _ratio(candidate["rms_dp"], noise["rms_dp"]),
    }


def _ratio(value: float, floor: float) -> float | None:
    return value / floor if floor > RESOLUTION else None
