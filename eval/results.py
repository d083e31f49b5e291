"""A finished evaluation as it lies on disk, read and scored without any model.

A run folder holds `run.json` (setup and model), for a quantized model `quantization.json` (what
its checkpoint says about its layers), and per task `items.jsonl` (what scoring needs of each
item), `pictures/` (small copies), `predictions.jsonl` and, where measured, `fidelity.jsonl`.
Every number of a report is computed from these.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ..common.atomic import write_json
from ..common.checksum import digest_bytes, verify_checksum, with_checksum
from .answering.predictions import Prediction, read_predictions, read_records
from .report.health import MODEL, Signs, read_signs, violations
from .tasks import TASK_KINDS
from .tasks.task import Fields, TaskScore, Unit, is_broken, percent, require_all

SCHEMA = 1
RUN_SCHEMA = 2  # of run.json and what lies beside it
QUANTIZATION = "quantization.json"


@dataclass(frozen=True)
class StoredTask:
    """One task of a run."""

    name: str
    info: Mapping[str, Any]  # kind, metric, profile, synthetic, notes, fingerprint
    items: tuple[Fields, ...]
    predictions: Mapping[str, Prediction]
    folder: Path

    @property
    def questions(self) -> list[dict[str, Any]]:
        """What was asked, without the names of pictures: not every folder keeps these."""
        return [{k: v for k, v in item.items() if k != "pictures"} for item in self.items]

    @property
    def is_complete(self) -> bool:
        """Whether every item has been answered."""
        return all(item["id"] in self.predictions for item in self.asked)

    @property
    def asked(self) -> tuple[Fields, ...]:
        """The items that are not broken."""
        return tuple(item for item in self.items if not is_broken(item))

    def score(self) -> TaskScore:
        """Score the stored predictions.

        Raises:
            ValueError: an item has no prediction.
        """
        require_all(self.name, self.items, self.predictions)
        texts = {key: p.prediction for key, p in self.predictions.items()}
        return TASK_KINDS[self.info["kind"]].score(self.items, texts, self.info["profile"])


@dataclass(frozen=True)
class StoredRun:
    """One evaluated model."""

    path: Path
    info: Mapping[str, Any]  # run.json
    tasks: Mapping[str, StoredTask]

    @property
    def name(self) -> str:
        """What the model was called."""
        return str(self.info["model"]["name"])

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """The run's setup and model, tasks apart."""
        found: Mapping[str, Any] = self.info["fingerprint"]
        return found


def read_run(path: str | Path) -> StoredRun:
    """Read a run folder.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged.
    """
    path = Path(path)
    info = read_info(path)
    tasks = {}
    for name, task_info in info["tasks"].items():
        folder = path / name
        if not (folder / "items.jsonl").is_file():
            raise FileNotFoundError(f"{folder / 'items.jsonl'} does not exist; evaluate again")
        data = (folder / "items.jsonl").read_bytes()
        if digest_bytes(data) != task_info["items_sha256"]:
            raise ValueError(f"{folder / 'items.jsonl'} is damaged or was edited; evaluate again")
        items = tuple(_parse_item(line, folder) for line in data.split(b"\n") if line)
        stored = folder / "predictions.jsonl"
        predictions = read_predictions(stored) if stored.is_file() else {}
        tasks[name] = StoredTask(name, task_info, items, predictions, folder)
    return StoredRun(path, info, tasks)


def _parse_item(line: bytes, folder: Path) -> Fields:
    def refuse(constant: str) -> float:
        raise ValueError(f"{folder / 'items.jsonl'} holds {constant}; evaluate again")

    found: Fields = json.loads(line, parse_constant=refuse)
    return found


def read_info(path: Path) -> dict[str, Any]:
    """Read a run's `run.json`.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is damaged or of another schema.
    """
    file = path / "run.json"
    if not file.is_file():
        raise FileNotFoundError(f"{path} is no evaluation folder (no run.json); evaluate first")
    try:
        info = json.loads(file.read_text("utf-8"))
        schema = info["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged; evaluate again into another folder") from error
    if schema != RUN_SCHEMA:
        raise ValueError(
            f"{file} has schema {str(schema)[:20]}, this version reads {RUN_SCHEMA}; evaluate again"
        )
    return verify_checksum(info, str(file))


def write_info(path: Path, info: Mapping[str, Any]) -> None:
    """Write a run's `run.json` atomically, with a checksum."""
    write_json(path / "run.json", with_checksum(info))


def read_fidelity(task: StoredTask) -> dict[str, dict[str, Any]] | None:
    """The fidelity records of a task by item id; None if it was not measured.

    Raises:
        ValueError: the measurement was not finished.
    """
    path = task.folder / "fidelity.jsonl"
    if not path.is_file():
        return None
    _, records = read_records(path, "fidelity")
    if len(records) != len(task.asked):
        raise ValueError(
            f"{path} covers {len(records)} of {len(task.asked)} items; "
            "run the evaluation again with its --reference to finish it"
        )
    return records


def read_quantization(run: StoredRun) -> dict[str, Any] | None:
    """What the checkpoint's maker wrote down, with one entry per layer; None where unknown.

    Raises:
        ValueError: the record is damaged.
    """
    path = run.path / QUANTIZATION
    if not path.is_file():
        return None
    try:
        record = dict(json.loads(path.read_bytes()))
        if not all(_is_layer(layer) for layer in record["layers"]):
            raise TypeError("an entry is no layer")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged; delete it, or evaluate {run.name} again") from error
    return record


def _is_layer(layer: Mapping[str, Any]) -> bool:
    errors = [layer.get(key) for key in ("final_error", "rtn_error")]
    known = [error for error in errors if error is not None]
    numbers = all(isinstance(e, (int, float)) and math.isfinite(e) for e in known)
    return isinstance(layer["name"], str) and numbers


def summarize(task: StoredTask) -> dict[str, Any]:
    """Everything `scores.json` says about a task."""
    score = task.score()
    found = signs(task, score)
    return {
        "metric": score.metric,
        "synthetic": task.info["synthetic"],
        "score": score.percent,
        "n": len(score.units),
        "n_rows": score.n_rows,
        "profile": task.info["profile"],
        "prompt_style": task.info["fingerprint"]["prompt_style"],
        "pixels": task.info["fingerprint"]["pixels"]["budget"],
        "blank_images": task.info["fingerprint"]["blank_images"],
        "extra": dict(score.extra),
        "categories": breakdown(score.units, "category"),
        "groups": breakdown(score.units, "group"),
        "table": dict(score.table),
        "health": health(task, score),
        "chance": found.chance,
        "health_reasons": [reason.to_dict() for reason in violations(MODEL, found)],
        "notes": list(task.info["notes"]),
    }


def signs(task: StoredTask, score: TaskScore) -> Signs:
    """What the health rules look at."""
    scorer = TASK_KINDS[task.info["kind"]].score
    return read_signs(task.items, task.predictions, score, scorer, task.info["profile"])


def breakdown(units: Sequence[Unit], by: str) -> dict[str, dict[str, float]]:
    """Number of units and score in percent, per category or per group."""
    parts: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        parts[getattr(unit, by)].append(unit)
    return {
        name: {"n": len(parts[name]), "score": percent(u.correct for u in parts[name])}
        for name in sorted(parts)
    }


def health(task: StoredTask, score: TaskScore) -> dict[str, float | None]:
    """Signs that a model no longer answers properly, whatever it scores."""
    answers = [task.predictions[item["id"]] for item in task.asked]
    return {
        "broken": score.broken,
        "parse_failures": score.parse_failures,
        "refusals": score.refusals,
        "truncated": sum(not a.stopped for a in answers),
        "empty": sum(not a.prediction.strip() for a in answers),
        "mean_tokens": _mean_known([a.n_tokens for a in answers]),
        "mean_characters": _mean_known([len(a.prediction) for a in answers]),
    }


def _mean_known(values: Sequence[int | None]) -> float | None:
    """The mean; None if one of them is unknown, or there are none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def speed(run: StoredRun) -> dict[str, float | None]:
    """Throughput over all stored answers; that of tokens is None where a server counts none."""
    answers = [p for task in run.tasks.values() for p in task.predictions.values()]
    seconds = sum(a.seconds for a in answers)
    counts = [a.n_tokens for a in answers if a.n_tokens is not None]
    tokens = sum(counts) if len(counts) == len(answers) else None
    rate = None if tokens is None else tokens / seconds if seconds else 0.0
    return {
        "items": len(answers),
        "tokens": tokens,
        "seconds": seconds,
        "items_per_second": len(answers) / seconds if seconds else 0.0,
        "tokens_per_second": rate,
    }
