"""The comparison with a server must detect differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import with_server
from tiny_models import make_random_model, write_checkpoint_folder

from vlpress.eval.answering.predictions import Prediction
from vlpress.eval.results import StoredRun, StoredTask
from vlpress.eval.tasks.benchmarks.ocrbench import GROUPS
from vlpress.eval.tasks.task import Item
from vlpress.model.processing.processor import Processor

CATEGORY = "Doc-oriented VQA"
FIELDS = {"category": CATEGORY, "group": GROUPS[CATEGORY], "question": "q", "answers": ["w"]}


def stored(*replies: tuple[str, int]) -> StoredRun:
    """A run of one benchmark whose correct answer is always "w"."""
    items = tuple({**FIELDS, "id": str(i), "unit": str(i)} for i in range(len(replies)))
    answers = {
        str(i): Prediction(str(i), text, 1, True, 0.1, length)
        for i, (text, length) in enumerate(replies)
    }
    info = {"kind": "ocrbench", "profile": "2025-08"}
    task = StoredTask("b", info, items, answers, Path())
    return StoredRun(Path(), {}, {"b": task})


def margins(value: float) -> Any:
    return lambda item, local, remote: value


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
def test_conditions_of_equality(
    served: tuple[tuple[str, int], ...], margin: float, passed: bool
) -> None:
    result = with_server.compare_runs(stored(*BASE), stored(*served), margins(margin))["b"]
    assert result["passed"] is passed
    assert result["same_answers"] == 2 - len(result["differing"])
    assert result["same_prompt_lengths"] == sum(
        local[1] == remote[1] for local, remote in zip(BASE, served, strict=True)
    )


def test_margin_is_that_of_the_first_different_token(tmp_path: Path) -> None:
    model = make_random_model()
    processor = Processor.from_folder(write_checkpoint_folder(tmp_path / "m"))
    measure: Any = with_server.Margins.__new__(with_server.Margins)
    measure._processor = processor
    item = Item("1", [{"role": "user", "content": "Hi"}], 8, {})
    prompt = processor.encode(item.messages)
    logits = model([processor.encode(item.messages, answer="ab")])[0][len(prompt)]
    ids = processor.tokenizer("bc", add_special_tokens=False).input_ids
    expected = abs(float(logits[ids[0]] - logits[ids[1]])) / float(logits.abs().max())
    assert measure._margin(model, item, "ab", "ac") == pytest.approx(expected, rel=1e-4)
