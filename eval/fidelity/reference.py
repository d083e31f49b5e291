"""The reference of a divergence: a stored evaluation of the original model.

The divergence is measured along the reference's answers, with the log-probabilities that the
original model gave them; these are stored beside the answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.differences import differences
from ...quant.checkpoint.loading import resolve_folder
from ..answering.vision_features import FeatureCache
from ..fingerprint import answer_setup, identify_checkpoint, setup_differences
from ..results import StoredRun, read_run
from ..tasks.task import Task
from .logprob_cache import LogProbReader
from .measure import FOLDER, measure_task, store_logprobs
from .teacher_forcing import ANSWER_TOKENS
from .vocabulary import find_common_tokens

SHOWN = 6  # differences named in an error


def read_reference(
    path: Path, setup: Mapping[str, Any], tasks: Sequence[Task], *, across_pixels: bool = False
) -> StoredRun:
    """Read a reference run.

    Args:
        path: its folder.
        setup: fingerprint of the run that is compared with it.
        tasks: the benchmarks of that run.
        across_pixels: whether the largest area of an image may differ.

    Raises:
        FileNotFoundError: it is not an evaluation folder.
        ValueError: it is unfinished, was answered by a server, or has another setup.
    """
    base = read_run(path)
    if "engine" in base.fingerprint:
        raise ValueError(
            f"{path} was answered by a server; the divergence needs the original model itself: "
            "evaluate it in this process and give that folder"
        )
    changed = setup_differences(base.fingerprint, setup, across_pixels=across_pixels)
    changed += question_differences(base, tasks)
    for task in tasks:
        base.tasks[task.name].score()  # refuses an unfinished run
    if changed:
        raise ValueError(
            f"{path} was evaluated with another setup ({'; '.join(changed[:SHOWN])}); "
            "evaluate the original again with the same settings"
        )
    return base


def question_differences(base: StoredRun, tasks: Sequence[Task]) -> list[str]:
    """Describe the differences between a run's questions and those of tasks.

    Raises:
        ValueError: the run lacks one of the tasks.
    """
    changed: list[str] = []
    for task in tasks:
        if task.name not in base.tasks:
            raise ValueError(f"{base.path} has no {task.name}; evaluate the original on it first")
        changed += differences(base.tasks[task.name].info["fingerprint"], task.fingerprint)
    return changed


def find_reference(base: StoredRun) -> Path:
    """Return the checkpoint folder of a reference's model.

    Raises:
        ValueError: the model is missing or has changed since.
    """
    try:
        folder = resolve_folder(base.name)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"{base.path} was made with the model {base.name}, which cannot be opened ({error}); "
            "put it back or evaluate the original again"
        ) from error
    identity = base.fingerprint["model"]
    if "memory" not in identity["files"] and identify_checkpoint(folder) != identity:
        raise ValueError(
            f"{base.path} was made with the model {base.name}, which has changed since; "
            "put it back or evaluate the original again"
        )
    return folder


def has_logprobs(base: StoredRun, tasks: Sequence[Task]) -> bool:
    """Whether the log-probabilities of all the base's answers are stored."""
    for task in tasks:
        try:
            reader = LogProbReader(base.tasks[task.name].folder / FOLDER, task.digests)
        except (FileNotFoundError, ValueError):
            return False
        if not all(item.id in reader for item in task.items):
            return False
    return True


def store_reference_logprobs(
    base: StoredRun, tasks: Sequence[Task], features: FeatureCache, batching: Mapping[str, Any]
) -> None:
    """Store the base's log-probabilities along its own answers."""
    for task in tasks:
        stored = base.tasks[task.name]
        store_logprobs(
            task,
            features,
            stored.first,
            stored.folder / FOLDER,
            {**answer_setup(base.fingerprint, task), "answer_tokens": ANSWER_TOKENS},
            **batching,
        )


def measure_fidelity(
    out: Path,
    tasks: Sequence[Task],
    base: StoredRun,
    features: FeatureCache,
    setup: Mapping[str, Any],
    batching: Mapping[str, Any],
    folder: Path | None = None,
) -> None:
    """Measure a candidate's divergence from the base along the base's answers.

    Args:
        out: folder of the candidate's run.
        tasks: the benchmarks.
        base: the reference.
        features: the candidate with its processor and image features.
        setup: fingerprint of the candidate's run.
        batching: arguments of `measure_task`.
        folder: checkpoint of the candidate, which records a pruned vocabulary.

    Raises:
        ValueError: the vocabularies cannot be mapped, or see `measure_task`.
    """
    common = find_common_tokens(base.fingerprint, setup, folder)
    for task in tasks:
        stored = base.tasks[task.name]
        reader = LogProbReader(stored.folder / FOLDER, task.digests)
        measure_task(
            task,
            features,
            stored.first,
            reader,
            out / task.name / "fidelity.jsonl",
            {
                **answer_setup(setup, task),
                "reference": base.fingerprint["model"],
                "answer_tokens": ANSWER_TOKENS,
                "kl_kind": reader.kind,
            },
            common=common,
            **batching,
        )
