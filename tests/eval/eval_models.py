"""Test models: random small ones, and answers from a function in place of a model's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_random_model, write_checkpoint_folder

from vlpress.eval import evaluation
from vlpress.eval.answering.runner import Completion, Responder
from vlpress.eval.fingerprint import run_fingerprint
from vlpress.eval.tasks.generated.reasoning import split_text
from vlpress.eval.tasks.task import Item, Task
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL

Say = Callable[[Item], str]
CUT = "[cut]"
"""At the end of a text: it was cut off here."""


def right(item: Item) -> str:
    """The right answer of an item."""
    answers = item.fields.get("answers")
    return str(answers[0] if answers else item.fields["answer"])


def read_messages(item: Item) -> list[dict[str, Any]]:
    """An item's messages with encoded images, as a processor takes them."""
    return [
        {
            **message,
            "content": [
                {**part, "image": part["image"].read()} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in item.messages
    ]


class TableResponder:
    """Answers by a function, records the items it gets, and may be interrupted.

    Args:
        say: the answer to an item.
        interrupt_after: batches before a KeyboardInterrupt; None: never.
    """

    def __init__(self, say: Say = right, *, interrupt_after: int | None = None) -> None:
        self.seen: list[str] = []
        self.batches: list[list[str]] = []
        self._say = say
        self._left = interrupt_after

    def lengths(self, items: Sequence[Item]) -> list[int]:
        return [len(str(item.fields["question"])) for item in items]

    def generate(self, items: Sequence[Item]) -> list[Completion]:
        if self._left == 0:
            raise KeyboardInterrupt
        if self._left is not None:
            self._left -= 1
        self.seen += [item.id for item in items]
        self.batches.append([item.id for item in items])
        return [self._complete(item) for item in items]

    def _complete(self, item: Item) -> Completion:
        """Separate the text by the item's rule; its words count as tokens."""
        text = self._say(item)
        stopped, text = not text.endswith(CUT), text.removesuffix(CUT)
        split, count = split_text(text, item.reasoning), len(text.split())
        if not split.reasoning and not split.is_unfinished:
            return Completion(text, count, stopped)
        words = len(split.reasoning.split())
        return Completion(
            split.answer,
            count,
            stopped,
            reasoning=split.reasoning,
            reasoning_tokens=words,
            is_unfinished=split.is_unfinished,
        )


def evaluate_answers(
    responder: Responder,
    model: QwenVL,
    processor: Processor,
    tasks: Sequence[Task],
    out: Path,
    *,
    fingerprint_extra: Mapping[str, Any] | None = None,
    **options: Any,
) -> evaluation.EvalResult:
    """Evaluate a model with the answers of `responder`; all else is the model's.

    Args:
        responder: answers the items.
        model: computes log-probabilities and divergences.
        processor: processor of the model.
        tasks: the benchmarks.
        out: folder of the run.
        fingerprint_extra: further parts of the run's fingerprint.
        options: of `evaluate_model`.
    """

    def fingerprint(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**run_fingerprint(*args, **kwargs), **(fingerprint_extra or {})}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "ModelResponder", lambda features, decoding: responder)
        patch.setattr(evaluation, "run_fingerprint", fingerprint)
        return evaluation.evaluate_model(model, processor, tasks, out, **options)


def small_model(seed: int = 0) -> QwenVL:
    return make_random_model(seed=seed)


def small_processor(folder: Path) -> Processor:
    return Processor.from_folder(write_checkpoint_folder(folder))
