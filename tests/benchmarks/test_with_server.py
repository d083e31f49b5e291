"""The comparison with a server must find what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import with_server
from tiny_models import make_random_model, write_checkpoint_folder

from vlpress.eval.answering.predictions import Prediction
from vlpress.eval.results import StoredRun, StoredTask
from vlpress.eval.tasks.ocrbench import GROUPS
from vlpress.eval.tasks.task import Item
from vlpress.model.processing.processor import Processor

CATEGORY = "Doc-oriented VQA"
FIELDS = {"category": CATEGORY, "group": GROUPS[CATEGORY], "question": "q", "answers": ["w"]}


def stored(*said: tuple[str, int]) -> StoredRun:
    """A run of one benchmark whose right answer is always "w"."""
    items = tuple({**FIELDS, "id": str(i), "unit": str(i)} for i in range(len(said)))
    answers = {
        str(i): Prediction(str(i), text, 1, True, 0.1, length)
        for i, (text, length) in enumerate(said)
    }
    info = {"kind": "ocrbench", "profile": "2025-08"}
    task = StoredTask("b", info, items, answers, Path())
    return StoredRun(Path(), {}, {"b": task})


def margins(value: float) -> Any:
    return lambda item, ours, theirs: value


BASE = (("w", 40), ("w", 41))


@pytest.mark.parametrize(
    ("served", "margin", "passed"),
    [
        (BASE, 0.0, True),
        ((("w", 40), ("w.", 41)), 1e-4, True),  # another text, but a near tie
        ((("w", 40), ("w.", 41)), 1e-3, False),
        ((("w", 40), ("x", 41)), 0.0, False),  # another score
        ((("w", 40), ("w", 44)), 0.0, False),  # another prompt
    ],
)
def test_what_counts_as_the_same(
    served: tuple[tuple[str, int], ...], margin: float, passed: bool
) -> None:
    found = with_server.compare_runs(stored(*BASE), stored(*served), margins(margin))["b"]
    assert found["passed"] is passed
    assert found["same_answers"] == 2 - len(found["differing"])
    assert found["same_prompt_lengths"] == sum(
        ours[1] == theirs[1] for ours, theirs in zip(BASE, served, strict=True)
    )


def test_margin_is_that_of_the_first_token_that_differs(tmp_path: Path) -> None:
    model = make_random_model()
    processor = Processor.from_folder(write_checkpoint_folder(tmp_path / "m"))
    asked: Any = with_server.Margins.__new__(with_server.Margins)
    asked._processor = processor
    item = Item("1", [{"role": "user", "content": "Hi"}], 8, {})
    prompt = processor.encode(item.messages)
    logits = model([processor.encode(item.messages, answer="ab")])[0][len(prompt)]
    ids = processor.tokenizer("bc", add_special_tokens=False).input_ids
    expected = abs(float(logits[ids[0]] - logits[ids[1]])) / float(logits.abs().max())
    assert asked._margin(model, item, "ab", "ac") == pytest.approx(expected, rel=1e-4)
