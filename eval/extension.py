"""Extension of a stored evaluation by further questions.

A stored answer belongs to the content of its question (`Item.digest`), so that an evaluation of
changed questions keeps all answers that are still valid: new and changed questions are asked, and
answers to removed ones stay in the files without being counted. Other rules only change the scores.

Batches are planned within the questions that one call added (a round), so that the batches of an
earlier call do not depend on later ones. A candidate takes its rounds from the base: both answer a
question in a batch with the same others, whichever was extended first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..common.differences import differences
from .answering.predictions import read_predictions, read_records
from .results import (
    PROMPT,
    ROUND,
    StoredRun,
    StoredTask,
    read_fidelity,
    read_info,
    write_info,
)
from .tasks.task import Fields, Task

Rounds = dict[str, dict[str, int]]
"""Task -> item id -> round."""


def assign_rounds(out: Path, tasks: Sequence[Task], base: StoredRun | None) -> Rounds:
    """Return the round of every item: the stored one, or a new one after those.

    Args:
        out: folder of the evaluation; may be new.
        tasks: the questions to be asked now.
        base: the reference; new items that it has in different rounds are in different rounds here.
    """
    return {task.name: _assign(out, task, base) for task in tasks}


def _assign(out: Path, task: Task, base: StoredRun | None) -> dict[str, int]:
    stored = _read_rounds(_read_items(out / task.name), task)
    in_base = base.tasks[task.name].items if base and task.name in base.tasks else ()
    order = _read_rounds(in_base, task)
    new = [key for key in task.digests if key not in stored]
    numbers = sorted({order.get(key, len(order)) for key in new})
    begin = max(stored.values(), default=-1) + 1
    following = {number: begin + rank for rank, number in enumerate(numbers)}
    return stored | {key: following[order.get(key, len(order))] for key in new}


def _read_rounds(items: Sequence[Fields], task: Task) -> dict[str, int]:
    """Return the rounds of the items that are still asked with the same content."""
    digests = task.digests
    return {
        item["id"]: item[ROUND]
        for item in items
        if digests.get(item["id"], "") == item.get(PROMPT) and ROUND in item
    }


def _read_items(folder: Path) -> list[Fields]:
    """Read the stored items of a task; none if there are none or the file is damaged.

    A damaged file is written anew, and its items are planned as if they were new.
    """
    try:
        lines = (folder / "items.jsonl").read_bytes().split(b"\n")
        return [dict(json.loads(line)) for line in lines if line]
    except (OSError, ValueError, TypeError):
        return []


def with_rounds(tasks: Sequence[Task], rounds: Mapping[str, Mapping[str, int]]) -> list[Task]:
    """Return the tasks with the rounds of `assign_rounds`."""
    return [replace(task, rounds=rounds[task.name]) for task in tasks]


def has_questions(stored: StoredTask, task: Task) -> bool:
    """Whether the stored items are those of a task, with equal content and gold answers."""
    digests = task.digests
    current = [
        {**fields, **({PROMPT: digests[fields["id"]]} if fields["id"] in digests else {})}
        for fields in task.fields
    ]
    return bool(stored.questions == json.loads(json.dumps(current)))


def is_finished(run: StoredRun, tasks: Sequence[Task]) -> bool:
    """Whether a stored evaluation has these tasks, and an answer to each of their questions."""
    by_name = {task.name: task for task in tasks}
    return set(run.tasks) == set(by_name) and all(
        stored.is_complete and has_questions(stored, by_name[name])
        for name, stored in run.tasks.items()
    )


def has_divergence(run: StoredRun) -> bool:
    """Whether the divergence from a reference is stored for every question of a run."""
    try:
        return all(read_fidelity(task) is not None for task in run.tasks.values())
    except ValueError:  # measured in part
        return False


def describe_changes(out: Path, tasks: Sequence[Task]) -> list[str]:
    """Describe how questions and rules differ from those of a stored evaluation with answers.

    Args:
        out: folder of the evaluation; may be new.
        tasks: the questions to be asked now.
    """
    notes = []
    entries = read_info(out)["tasks"] if (out / "run.json").is_file() else {}
    for task in tasks:
        path = out / task.name / "predictions.jsonl"
        if not path.is_file():
            continue
        profile = entries.get(task.name, {}).get("profile", task.profile)
        if profile != task.profile:
            notes.append(f"{task.name}: scored by the rules {task.profile}, before by {profile}")
        every = {record["id"] for record in read_records(path, "predictions")[1].values()}
        answers = read_predictions(path, task.digests)
        valid = {answer.id for answer in answers.values()}
        before = {item["id"]: item.get(PROMPT) for item in _read_items(out / task.name)}
        asked = [key for key, prompt in before.items() if prompt]
        changed = [k for k in asked if k in task.digests and task.digests[k] != before[k]]
        removed = [k for k in asked if k not in task.digests and k in every]
        new = [k for k in task.digests if k not in valid and k not in changed and k not in before]
        counts = {
            f"{len(new)} new": new,
            f"{len(changed)} changed, asked again": changed,
            f"{len(removed)} no longer asked": removed,
        }
        if parts := [text for text, keys in counts.items() if keys]:
            notes.append(f"{task.name}: {', '.join(parts)}; {len(answers)} stored answers are kept")
    return notes


def refuse_partial_fidelity(out: Path, tasks: Sequence[Task]) -> None:
    """Refuse to add questions without a reference where divergences are stored.

    Raises:
        ValueError: the stored divergences would not cover all questions.
    """
    for task in tasks:
        path = out / task.name / "fidelity.jsonl"
        if path.is_file():
            _, records = read_records(path, "fidelity", task.forced_digests)
            if missing := len(task.items) - len(records):
                raise ValueError(
                    f"{out} holds the divergence from a reference, but not for {missing} of the "
                    f"{len(task.items)} questions of {task.name}; give the same --reference again"
                )


def keep_only(out: Path, names: Sequence[str]) -> list[str]:
    """Take all other benchmarks out of a stored evaluation; their answers stay in its folder.

    Args:
        out: folder of the evaluation; may be new.
        names: benchmarks to keep.

    Returns:
        Names of the others.
    """
    if not (out / "run.json").is_file():
        return []
    info: dict[str, Any] = read_info(out)
    others = [name for name in info["tasks"] if name not in names]
    if others:
        kept = {name: entry for name, entry in info["tasks"].items() if name in names}
        write_info(out, {**info, "tasks": kept})
    return others


def refused_differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """List the differences between two runs that make stored work invalid.

    The others extend a run: which questions are asked (each answer has the digest of its own), the
    rules of scoring, a benchmark that the stored run lacks, and a text where there was none.
    """
    settings = stored.get("tasks", {})
    tasks = {name: current["tasks"].get(name, settings[name]) for name in settings}
    extended = {**current, "tasks": tasks, "questions": stored.get("questions")}
    if stored.get("text") is None:
        extended["text"] = stored.get("text")
    return differences(stored, extended)
