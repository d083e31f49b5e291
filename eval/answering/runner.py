"""Answering of a task's items by a model, with stored answers.

The runner uses a model through the `Responder` protocol, so that a served model can replace a
local one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from ...common.distributed import SINGLE_PROCESS, Communicator
from ...model.finite import NotFiniteError
from ...model.generation import Generated, Sampling, generate
from ...model.processing.inputs import Prompt
from ...model.processing.processor import Processor
from ..tasks.generated.reasoning import split_text
from ..tasks.task import Item, Task
from .batches import Batch, OnProgress, process_items
from .local_reasoning import count_prefix
from .predictions import Prediction, Record, open_shared, prediction_record
from .sampling import GREEDY, Decoding
from .vision_features import FeatureCache

NAMED = 8
"""Items named in an error."""


@dataclass(frozen=True)
class Completion:
    """A model's answer to one item."""

    text: str
    """Without reasoning, as the rule of the item separates it."""
    n_tokens: int | None
    """Generated tokens, all of them; None if a server does not report them."""
    stopped: bool
    """Whether the model ended by itself, not at the item's token limit."""
    prompt_tokens: int | None = None
    """Including image tokens, dropped ones too; None if a server does not report it."""
    first_logprobs: Mapping[str, float] | None = None
    """Log-probabilities of the likeliest first tokens by text; None if not offered."""
    reasoning: str | None = None
    """What was written before `text`; None: nothing. See `Prediction`, also for the following."""
    reasoning_tokens: int | None = None
    is_unfinished: bool | None = None
    visual_tokens: tuple[int, int] | None = None


class Responder(Protocol):
    """A model that answers items, local or served."""

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Return prompt lengths in any unit; items of similar length share a batch."""

    def generate(self, items: Sequence[Item]) -> list[Completion]:
        """Answer one batch without penalties: greedily, or with the items' seeds."""


class ModelResponder:
    """Responder for a local model.

    Args:
        features: the model with its processor and image features.
        decoding: temperature and limits of sampling; the seeds are those of the items.
    """

    def __init__(self, features: FeatureCache, decoding: Decoding = GREEDY) -> None:
        self._features = features
        # Explicit: the generation_config of a checkpoint may have a repetition penalty, which
        # would change the measured answers.
        self._sampling = Sampling(
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            top_k=decoding.top_k,
            repetition_penalty=1.0,
        )

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Return prompt lengths in tokens."""
        return self._features.lengths(items)

    @torch.inference_mode()
    def generate(self, items: Sequence[Item]) -> list[Completion]:
        """Answer one batch, up to the smallest token limit of its items.

        Raises:
            NotFiniteError: features or scores are NaN or infinite.
        """
        processor = self._features.processor
        prompts, features = self._features.prompts(items)
        answers = generate(
            self._features.model,
            prompts,
            max_new_tokens=min(item.max_new_tokens for item in items),
            stop_ids=processor.stop_ids,
            features=features,
            sampling=self._sampling,
            seeds=[item.seed or 0 for item in items],
        )
        return [
            _complete(answer, prompt, item.reasoning, processor)
            for answer, prompt, item in zip(answers, prompts, items, strict=True)
        ]


def _complete(answer: Generated, prompt: Prompt, rule: str, processor: Processor) -> Completion:
    """Decode generated tokens, and separate the reasoning by a rule of `reasoning.RULES`."""
    ids = answer.token_ids
    split = split_text(processor.decode(ids), rule)
    kept, dropped = prompt.kept_visual_tokens, prompt.dropped_tokens
    completion = Completion(
        split.answer,
        len(ids),
        answer.stopped,
        # Of the whole prompt: runs with and without a reduction have the same questions.
        len(prompt) + dropped,
        visual_tokens=(kept, kept + dropped) if prompt.selections else None,
    )
    if not split.reasoning and not split.is_unfinished:
        return completion
    tokens = count_prefix(ids, processor.decode, len(split.reasoning))
    return replace(
        completion,
        reasoning=split.reasoning,
        reasoning_tokens=tokens,
        is_unfinished=split.is_unfinished,
    )


def answer_task(
    task: Task,
    responder: Responder,
    path: Path,
    fingerprint: dict[str, object],
    *,
    batch_size: int,
    threads: int | None = None,
    on_progress: OnProgress | None = None,
    comm: Communicator = SINGLE_PROCESS,
) -> dict[str, Prediction]:
    """Answer every item without a stored answer.

    After an interruption (KeyboardInterrupt included) the same call resumes from the file.

    Args:
        task: the items.
        responder: the model.
        path: predictions file.
        fingerprint: JSON values that identify the run and the task.
        batch_size: items per batch, at least 1.
        threads: CPU threads of this process, stored with the answers; None for a served model.
        on_progress: called after every batch; its detail is the rate in items per second.
        comm: ranks that share the batches; every rank gets all answers.

    Returns:
        All predictions by `Prediction.key`.

    Raises:
        ValueError: the file has another fingerprint, the batch size is less than 1, or the number
            of answers differs from the number of items.
        NotFiniteError: the model computed NaN or infinity; the message names benchmark and items.
            Answers stored before are kept, and the same call resumes after them.
    """
    with closing(open_shared(comm, path, "predictions", fingerprint, task.digests)) as store:
        progress = _Progress(on_progress, task, len(store.records))
        progress.report(len(store.records))
        process_items(
            task,
            store,
            responder.lengths,
            lambda batch: _answer(batch, responder, threads),
            lambda: progress.report(len(store.records)),
            batch_size=batch_size,
            comm=comm,
        )
        return {key: Prediction(**record) for key, record in store.records.items()}


def _answer(batch: Batch, responder: Responder, threads: int | None) -> list[Record]:
    """Answer a batch and return its records."""
    started = time.perf_counter()
    with _naming_items(batch.items):
        answers = responder.generate(batch.items)
    seconds = batch.planning_seconds + (time.perf_counter() - started) / len(batch.items)
    if len(answers) != len(batch.items):
        raise ValueError(
            f"{len(answers)} answers came back for {len(batch.items)} items; "
            "a responder answers each item once"
        )
    return [
        prediction_record(
            Prediction(
                item.id,
                answer.text,
                answer.n_tokens,
                answer.stopped,
                round(seconds, 6),
                answer.prompt_tokens,
                answer.first_logprobs,
                threads,
                answer.reasoning,
                answer.reasoning_tokens,
                answer.is_unfinished,
                answer.visual_tokens,
                item.sample,
                item.seed,
            )
        )
        for item, answer in zip(batch.items, answers, strict=True)
    ]


@contextmanager
def _naming_items(items: Sequence[Item]) -> Iterator[None]:
    """Add the ids of the affected items to errors about values that are not finite."""
    try:
        yield
    except NotFiniteError as error:
        if not error.rows:
            raise
        ids = [items[row].id for row in error.rows]
        shown = ", ".join(ids[:NAMED]) + (f" and {len(ids) - NAMED} more" * (len(ids) > NAMED))
        raise error.within(f"item{'s' * (len(ids) > 1)} {shown}") from error


class _Progress:
    """Reports the number of answered items and the rate of this call."""

    def __init__(self, on_progress: OnProgress | None, task: Task, done: int) -> None:
        self._on_progress = on_progress
        self._task = task
        self._done_before = done  # by earlier calls; not part of the rate
        self._started = time.perf_counter()

    def report(self, done: int) -> None:
        if self._on_progress is None:
            return
        answered = done - self._done_before
        seconds = time.perf_counter() - self._started
        rate = f"{answered / seconds:.3g} items/s" if answered and seconds else ""
        self._on_progress(self._task.name, done, len(self._task.items), rate)
