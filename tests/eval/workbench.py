"""Evaluations of models that say what a test wants, made in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval_models import Say, TableResponder, right, small_model
from tiny_models import write_checkpoint_folder

from vlpress.eval import evaluate, open_task
from vlpress.model.processing import Processor

NAMES = ("builtin-mmbench", "builtin-ocrbench", "builtin-mmmu")


class Workbench:
    """Evaluates models that say what a test wants."""

    def __init__(self, processor: Processor, folder: Path) -> None:
        self.processor = processor
        self.folder = folder
        self.source = write_checkpoint_folder(folder / "checkpoint")

    def run(self, name: str, say: Say = right, *, names: Any = NAMES, **options: Any) -> Path:
        opened = options.pop("open", {})
        evaluate(
            small_model(options.pop("seed", 0)),
            self.processor,
            [open_task(task, max_new_tokens=3, **opened) for task in names],
            self.folder / name,
            responder=None if say is None else TableResponder(say),
            name=name,
            source=self.source,
            **options,
        )
        return self.folder / name


def lossy(*wrong: str) -> Say:
    """Right but for the named items, where it babbles."""
    return lambda item: "no idea | <b>" if item.id in wrong else right(item)
