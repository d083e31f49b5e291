"""A stored evaluation, read and scored without a model.

A run folder contains `run.json` (setup and model), for a quantized model `quantization.json` (the
checkpoint's record of its layers), and per task `items.jsonl` (fields for scoring), `pictures/`
(thumbnails), `predictions.jsonl` and, where measured, `fidelity.jsonl`. Every number of a report is
computed from these files.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from ..common.atomic import write_json
from ..common.checksum import digest_bytes, verify_checksum, with_checksum
from ..common.json_files import read_json
from .answering.predictions import (
    Prediction,
    count_visual_tokens,
    read_predictions,
    read_records,
)
from .answering.sampling import sample_numbers
from .report.health import MODEL, Signs, compute_signs, list_violations
from .report.sections.lengths import summarize_reasoning
from .report.sections.sampling import sampling_section
from .report.words.answer_warnings import model_warnings
from .tasks import REASONING, TASK_KINDS
from .tasks.generated.reasoning import NONE, reasoning_content
from .tasks.generated.repetition import repeats_itself
from .tasks.generated.samples import combine_samples
from .tasks.task import (
    INPUT_SIZE,
    Fields,
    TaskScore,
    Unit,
    answer_key,
    forced_digest,
    is_broken,
    percent,
    require_all,
)

SCHEMA = 1
RUN_SCHEMA = 4  # of run.json and the task folders
QUANTIZATION = "quantization.json"
PROMPT, ROUND = "prompt", "round"
"""Keys of an item in `items.jsonl`: the digest of its prompt, and the call that asked it first."""
REPLACED = "replaced_items_sha256"
"""Key of a task in `run.json` while its `items.jsonl` is replaced: the digest of the old file."""
ITEMS_DIGESTS = ("items_sha256", REPLACED)


@dataclass(frozen=True)
class StoredTask:
    """One task of a run."""

    name: str
    info: Mapping[str, Any]  # kind, metric, profile, synthetic, notes, fingerprint
    items: tuple[Fields, ...]
    predictions: Mapping[str, Prediction]
    """By `Prediction.key`; of sampled answers all samples."""
    folder: Path
    numbers: tuple[int | None, ...] = (None,)
    """Numbers of the samples of each question, from 1; a single None: greedy answers."""

    @property
    def questions(self) -> list[dict[str, Any]]:
        """Items without what depends on the folder or the image sizes of the run."""
        own = ("pictures", ROUND, INPUT_SIZE)
        return [{k: v for k, v in item.items() if k not in own} for item in self.items]

    @property
    def digests(self) -> dict[str, str]:
        """Digests of the prompts of all items that are not broken, by id."""
        return {item["id"]: item[PROMPT] for item in self.sound_items}

    @property
    def forced_digests(self) -> dict[str, str]:
        """See `Task.forced_digests`."""
        return {item["id"]: forced_digest(item[PROMPT], item) for item in self.sound_items}

    @property
    def is_complete(self) -> bool:
        """Whether every item has a prediction, or all of its samples."""
        keys = (answer_key(item["id"], n) for item in self.sound_items for n in self.numbers)
        return all(key in self.predictions for key in keys)

    @property
    def samples(self) -> int | None:
        """Number of sampled answers to each question; None: greedy answers."""
        return None if self.numbers == (None,) else len(self.numbers)

    @cached_property
    def by_sample(self) -> tuple[Mapping[str, Prediction], ...]:
        """The predictions of each sample by item id; of greedy answers a single one."""
        parts: dict[int | None, dict[str, Prediction]] = {number: {} for number in self.numbers}
        for prediction in self.predictions.values():
            parts[prediction.sample][prediction.id] = prediction
        return tuple(parts.values())

    @property
    def first(self) -> Mapping[str, Prediction]:
        """The greedy predictions, or those of the first sample, by item id."""
        return self.by_sample[0]

    @cached_property
    def answers(self) -> tuple[Prediction, ...]:
        """The answers to all items that are not broken, question by question, all samples.

        Raises:
            KeyError: an answer is missing.
        """
        return tuple(
            self.predictions[answer_key(item["id"], number)]
            for item in self.sound_items
            for number in self.numbers
        )

    @property
    def reasoning_rule(self) -> str:
        """Rule by which the answers were separated from reasoning."""
        return str(self.info["fingerprint"].get(REASONING, NONE))

    @cached_property
    def repeating(self) -> frozenset[str]:
        """Keys of the answers that repeat themselves or whose reasoning does."""
        return frozenset(
            answer.key
            for answer in self.answers
            if repeats_itself(answer.prediction)
            or repeats_itself(reasoning_content(answer.reasoning or ""))
        )

    @property
    def sound_items(self) -> tuple[Fields, ...]:
        """Items that are not broken."""
        return tuple(item for item in self.items if not is_broken(item))

    def score(self) -> TaskScore:
        """Score the stored predictions; of sampled answers the mean over the samples.

        Raises:
            ValueError: an item has no prediction.
        """
        scores = self.sample_scores()
        return scores[0] if self.samples is None else combine_samples(scores)

    def sample_scores(self) -> list[TaskScore]:
        """Score each sample of the stored predictions; of greedy answers there is one.

        Raises:
            ValueError: an item has no prediction.
        """
        scorer = TASK_KINDS[self.info["kind"]].score
        scores = []
        for answers in self.by_sample:
            require_all(self.name, self.items, answers)
            texts = {key: answer.prediction for key, answer in answers.items()}
            scores.append(scorer(self.items, texts, self.info["profile"]))
        return scores


@dataclass(frozen=True)
class StoredRun:
    """One evaluated model."""

    path: Path
    info: Mapping[str, Any]  # run.json
    tasks: Mapping[str, StoredTask]

    @property
    def name(self) -> str:
        """Name of the model."""
        return str(self.info["model"]["name"])

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """Setup and model of the run, without its tasks."""
        fingerprint: Mapping[str, Any] = self.info["fingerprint"]
        return fingerprint


def read_run(path: str | Path) -> StoredRun:
    """Read a run folder.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged.
    """
    path = Path(path)
    info = read_info(path)
    numbers = sample_numbers(info["fingerprint"])
    tasks = {}
    for name, task_info in info["tasks"].items():
        folder = path / name
        if not (folder / "items.jsonl").is_file():
            raise FileNotFoundError(f"{folder / 'items.jsonl'} does not exist; evaluate again")
        data = (folder / "items.jsonl").read_bytes()
        if digest_bytes(data) not in (task_info["items_sha256"], task_info.get(REPLACED)):
            raise ValueError(f"{folder / 'items.jsonl'} is damaged or was edited; evaluate again")
        items = tuple(_parse_item(line, folder) for line in data.split(b"\n") if line)
        stored = folder / "predictions.jsonl"
        task = StoredTask(name, task_info, items, {}, folder, numbers)
        if stored.is_file():
            task = replace(task, predictions=read_predictions(stored, task.digests))
        tasks[name] = task
    return StoredRun(path, info, tasks)


def _parse_item(line: bytes, folder: Path) -> Fields:
    def refuse(constant: str) -> float:
        raise ValueError(f"{folder / 'items.jsonl'} holds {constant}; evaluate again")

    item: Fields = json.loads(line, parse_constant=refuse)
    return item


def read_info(path: Path) -> dict[str, Any]:
    """Read a run's `run.json`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged or has another schema.
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


def tasks_of_another_schema(path: Path) -> list[str] | None:
    """Names of the benchmarks of a run whose `run.json` has another schema; None if it has ours.

    Raises:
        ValueError: the file is damaged.
    """
    info = read_json(path / "run.json", "remove the folder")
    if info.get("schema") == RUN_SCHEMA:
        return None
    folders = (entry for entry in path.iterdir() if (entry / "items.jsonl").is_file())
    return [folder.name for folder in folders if folder.name in info.get("tasks", {})]


def write_info(path: Path, info: Mapping[str, Any]) -> None:
    """Write a run's `run.json` atomically, with a checksum."""
    write_json(path / "run.json", with_checksum(info))


def read_fidelity(task: StoredTask) -> dict[str, dict[str, Any]] | None:
    """Read the fidelity records of a task by item id; None if it was not measured.

    Raises:
        ValueError: the measurement is incomplete.
    """
    path = task.folder / "fidelity.jsonl"
    if not path.is_file():
        return None
    _, records = read_records(path, "fidelity", task.forced_digests)
    if len(records) != len(task.sound_items):
        raise ValueError(
            f"{path} covers {len(records)} of {len(task.sound_items)} items; "
            "run the evaluation again with its --reference to finish it"
        )
    return records


def read_quantization(run: StoredRun) -> dict[str, Any] | None:
    """Read the checkpoint's record with one entry per layer; None if there is none.

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
        _check_experts(record.get("experts"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged; delete it, or evaluate {run.name} again") from error
    return record


def _is_layer(layer: Mapping[str, Any]) -> bool:
    """Whether an entry has a name, and errors that are finite or absent."""
    errors = [e for key in ("final_error", "rtn_error") if (e := layer.get(key)) is not None]
    are_numbers = all(isinstance(e, (int, float)) and math.isfinite(e) for e in errors)
    return isinstance(layer["name"], str) and are_numbers


def _check_experts(experts: Any) -> None:
    """Refuse numbers of tokens that cannot be drawn.

    Raises:
        TypeError: there are such.
    """
    if experts is None:
        return
    floor, tokens = experts["floor"], experts["tokens"]
    counts = [floor, *(count for of_layer in tokens.values() for count in of_layer)]
    if not tokens or not all(type(count) is int and count >= 0 for count in counts):
        raise TypeError("a number of tokens is none")
    if not all(tokens.values()):
        raise TypeError("a layer has no experts")


def summarize_task(task: StoredTask) -> dict[str, Any]:
    """Return the entry of a task in `scores.json`."""
    score = task.score()
    signs = find_signs(task, score)
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
        "reasoning_rule": task.reasoning_rule,
        "max_new_tokens": task.info["fingerprint"]["max_new_tokens"],
        "extra": dict(score.extra),
        "categories": score_parts(score.units, "category"),
        "groups": score_parts(score.units, "group"),
        "table": dict(score.table),
        "health": summarize_health(task, score),
        **visual_tokens(task),
        **sampling_section(task, score),
        "chance": signs.chance,
        "health_reasons": [reason.to_dict() for reason in list_violations(MODEL, signs)],
        "notes": list(task.info["notes"]),
        "warnings": model_warnings(MODEL, task),
    }


def visual_tokens(task: StoredTask) -> dict[str, Any]:
    """Return `{"visual_tokens": ...}`, see `count_visual_tokens`; empty if all were kept."""
    answers = [task.first[item["id"]] for item in task.sound_items]
    is_reduced = any(answer.visual_tokens is not None for answer in answers)
    return {"visual_tokens": count_visual_tokens(answers)} if is_reduced else {}


def find_signs(task: StoredTask, score: TaskScore) -> Signs:
    """Compute the input of the health rules."""
    scorer = TASK_KINDS[task.info["kind"]].score
    return compute_signs(task.items, task.by_sample, score, scorer, task.info["profile"])


def score_parts(units: Sequence[Unit], by: str) -> dict[str, dict[str, float]]:
    """Return the number of units and the score in percent per `category` or per `group`."""
    parts: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        parts[getattr(unit, by)].append(unit)
    return {
        name: {"n": len(parts[name]), "score": percent(u.value for u in parts[name])}
        for name in sorted(parts)
    }


def summarize_health(task: StoredTask, score: TaskScore) -> dict[str, Any]:
    """Count signs of broken answers, such as truncations, independent of the score."""
    answers = task.answers
    return {
        "broken": score.broken,
        "parse_failures": score.parse_failures,
        "refusals": score.refusals,
        "truncated": sum(a.is_cut_off for a in answers),
        "repeating": len(task.repeating),
        "empty": sum(not a.prediction.strip() for a in answers),
        "mean_tokens": _mean([a.n_tokens for a in answers]),
        "mean_characters": _mean([len(a.prediction) for a in answers]),
        "reasoning": summarize_reasoning(answers),
    }


def _mean(values: Sequence[int | None]) -> float | None:
    """Return the mean; None if a value is None, or there are no values."""
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if numbers and len(numbers) == len(values) else None


def summarize_speed(run: StoredRun) -> dict[str, float | None]:
    """Compute the throughput over all answers; that of tokens is None if a server counts none."""
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
