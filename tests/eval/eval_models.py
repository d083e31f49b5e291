"""Stand-ins for models in evaluation tests: random small ones, and answers from a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tiny_models import make_random_model, write_checkpoint_folder

from vlpress.eval.answering.runner import Answer
from vlpress.eval.tasks.task import Item
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL

Say = Callable[[Item], str]


def right(item: Item) -> str:
    """The answer that scores."""
    answers = item.fields.get("answers")
    return str(answers[0] if answers else item.fields["answer"])


def read_messages(item: Item) -> list[dict[str, Any]]:
    """An item's messages with its pictures' bytes in them, as a processor takes them."""
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
    """Says what it is told to, counts what it was asked, and may be interrupted."""

    def __init__(self, say: Say = right, *, interrupt_after: int | None = None) -> None:
        self.asked: list[str] = []
        self.batches: list[list[str]] = []
        self._say = say
        self._left = interrupt_after

    def lengths(self, items: Sequence[Item]) -> list[int]:
        return [len(str(item.fields["question"])) for item in items]

    def generate(self, items: Sequence[Item]) -> list[Answer]:
        if self._left == 0:
            raise KeyboardInterrupt
        if self._left is not None:
            self._left -= 1
        self.asked += [item.id for item in items]
        self.batches.append([item.id for item in items])
        texts = [self._say(item) for item in items]
        return [Answer(text, len(text.split()), True) for text in texts]


def small_model(seed: int = 0) -> QwenVL:
    return make_random_model(seed=seed)


def small_processor(folder: Path) -> Processor:
    return Processor.from_folder(write_checkpoint_folder(folder))
