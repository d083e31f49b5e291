from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eval_files import package_files
from eval_models import read_messages, small_model
from scipy.stats import entropy  # type: ignore[import-untyped]  # scipy has no annotations

from vlpress.eval import fidelity
from vlpress.eval.fidelity import (
    divergence,
    measure_task,
    summarize_fidelity,
    unit_divergences,
)
from vlpress.eval.predictions import Prediction
from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.task import Task
from vlpress.model.processing import Processor
from vlpress.model.qwen_vl import QwenVL


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    package_files(tmp_path, monkeypatch)
    return open_task("builtin-ocrbench")


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> Processor:
    return Processor.from_folder(checkpoint)


def stored(task: Task, text: str = "abc", stopped: bool = True) -> dict[str, Prediction]:
    return {i.id: Prediction(i.id, text, len(text), stopped, 0.1) for i in task.items}


def measure(
    task: Task, base: QwenVL, cand: QwenVL, processor: Processor, path: Path, **answer: Any
) -> dict[str, dict[str, Any]]:
    answers = stored(task, **answer)
    return measure_task(task, base, cand, processor, answers, path, {"a": 1}, batch_size=4)


def test_divergence_against_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(300, 17, generator=generator) * 3
    candidate = base + torch.randn(300, 17, generator=generator)
    expected = entropy(
        base.softmax(-1).double().numpy(), candidate.softmax(-1).double().numpy(), axis=1
    )
    assert np.allclose(divergence(base, candidate).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_divergence_is_zero_only_for_equal_distributions() -> None:
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))
    assert divergence(logits, logits + 3.0).max() < 1e-6
    assert divergence(logits, logits * 2).min() > 0
    assert divergence(logits[:0], logits[:0]).shape == (0,)


def test_divergence_refuses_what_is_not_finite() -> None:
    logits = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="logits that are not finite"):
        divergence(logits, logits.clone().fill_(torch.nan))


def test_a_model_does_not_differ_from_itself(
    task: Task, processor: Processor, tmp_path: Path
) -> None:
    model = small_model()
    records = measure(task, model, model, processor, tmp_path / "f.jsonl")
    assert [len(r["kl"]) for r in records.values()] == [3] * 9
    summary = summarize_fidelity(records.values())
    assert summary is not None
    assert (summary["tokens"], summary["kl_max"], summary["top1_agreement"]) == (27, 0.0, 1.0)
    assert summary["end_of_turn"]["tokens"] == 9


def test_records_equal_a_direct_computation(
    task: Task, processor: Processor, tmp_path: Path
) -> None:
    base, cand = small_model(), small_model(1)
    records = measure(task, base, cand, processor, tmp_path / "f.jsonl", text="xyz!")
    for item in task.items[:3]:
        prompt = processor.encode(read_messages(item), answer="xyz!")
        start = len(processor.encode(read_messages(item))) - 1
        p, q = base([prompt])[0][start:-1], cand([prompt])[0][start:-1]
        kl = divergence(p, q).tolist()
        assert records[item.id]["kl"] == pytest.approx(kl[:-1], rel=1e-3)
        assert records[item.id]["end"]["kl"] == pytest.approx(kl[-1], rel=1e-3)
        same = (p.argmax(-1) == q.argmax(-1)).int().tolist()
        assert records[item.id]["top1"] == same[:-1]


def test_end_of_turn_counts_only_where_the_base_ended(
    task: Task, processor: Processor, tmp_path: Path
) -> None:
    base, cand = small_model(), small_model(1)
    cut = measure(task, base, cand, processor, tmp_path / "cut.jsonl", stopped=False)
    ended = measure(task, base, cand, processor, tmp_path / "end.jsonl")
    for key in cut:
        assert cut[key]["end"] is None
        assert cut[key]["kl"] == pytest.approx(ended[key]["kl"], rel=1e-3)
    empty = measure(task, base, cand, processor, tmp_path / "empty.jsonl", text="")
    assert all(r["kl"] == [] and r["end"] for r in empty.values())
    assert summarize_fidelity(empty.values()) is None
    assert unit_divergences([i.fields for i in task.items], empty) == {}


def test_long_answers_are_compared_up_to_the_cap(
    task: Task, processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, cand = small_model(), small_model(1)
    whole = measure(task, base, cand, processor, tmp_path / "a.jsonl", text="abcdefgh")
    monkeypatch.setattr(fidelity, "ANSWER_TOKENS", 5)
    cut = measure(task, base, cand, processor, tmp_path / "b.jsonl", text="abcdefgh")
    for key in cut:
        assert cut[key]["kl"] == pytest.approx(whole[key]["kl"][:5], rel=1e-3)
        assert cut[key]["end"] is None


def test_measurement_resumes(
    task: Task, processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, cand = small_model(), small_model(1)
    path = tmp_path / "f.jsonl"
    whole = measure(task, base, cand, processor, tmp_path / "whole.jsonl")
    calls: list[list[str]] = []
    original = fidelity._measure_batch

    def limited(*args: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append([item.id for item in args[3]])
        return original(*args)

    monkeypatch.setattr(fidelity, "_measure_batch", limited)
    with pytest.raises(KeyboardInterrupt):
        measure(task, base, cand, processor, path)
    done = [key for batch in calls for key in batch]
    calls.clear()
    records = measure(task, base, cand, processor, path)
    assert records == whole
    assert not set(done) & {key for batch in calls for key in batch}


def test_units_average_their_rows() -> None:
    items = [{"id": "a", "unit": "1"}, {"id": "b", "unit": "1"}, {"id": "c", "unit": "2"}]
    records: dict[str, dict[str, Any]] = {
        "a": {"kl": [1.0, 3.0]},
        "b": {"kl": [4.0]},
        "c": {"kl": []},
    }
    assert unit_divergences(items, records) == {"1": 3.0}
