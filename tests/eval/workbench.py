"""Quick evaluations with given answers."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from eval_models import Say, TableResponder, evaluate_answers, right, small_model
from tiny_models import write_checkpoint_folder

from vlpress.common.checksum import KEY, digest_bytes, with_checksum
from vlpress.eval import open_task
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL

NAMES = ("builtin-mmbench", "builtin-ocrbench", "builtin-mmmu")


@lru_cache
def _model(seed: int) -> QwenVL:
    return small_model(seed)


class Workbench:
    """Evaluates small models with given answers."""

    def __init__(self, processor: Processor, folder: Path) -> None:
        self.processor = processor
        self.folder = folder
        self.source = write_checkpoint_folder(folder / "checkpoint")

    def run(self, name: str, say: Say = right, *, names: Any = NAMES, **options: Any) -> Path:
        opened = options.pop("open", {})
        evaluate_answers(
            TableResponder(say),
            _model(options.pop("seed", 0)),
            self.processor,
            [open_task(task, max_new_tokens=3, **opened) for task in names],
            self.folder / name,
            name=name,
            source=self.source,
            **options,
        )
        return self.folder / name


def reseal(run: Path) -> Path:
    """Recompute the checksums of an edited evaluation."""
    for path in run.glob("*/*.jsonl"):
        if path.name != "items.jsonl":
            lines = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
            sealed = [with_checksum({k: v for k, v in line.items() if k != KEY}) for line in lines]
            path.write_text("".join(json.dumps(line) + "\n" for line in sealed), "utf-8")
    info = json.loads((run / "run.json").read_text("utf-8"))
    for name, task in info["tasks"].items():
        if (path := run / name / "items.jsonl").is_file():
            task["items_sha256"] = digest_bytes(path.read_bytes())
    info.pop(KEY)
    (run / "run.json").write_text(json.dumps(with_checksum(info)), "utf-8")
    return run


def lossy(*wrong: str) -> Say:
    """Right answers except for the named items."""
    return lambda item: "no idea | <b>" if item.id in wrong else right(item)
