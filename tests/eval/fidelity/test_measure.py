from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eval_files import package_files
from eval_models import read_messages, small_model
from scipy.stats import entropy  # type: ignore[import-untyped]  # scipy has no annotations

from vlpress.calib import stored_logprobs
from vlpress.calib.stored_logprobs import lump
from vlpress.eval.answering.predictions import Prediction
from vlpress.eval.answering.vision_features import FeatureCache
from vlpress.eval.fidelity import measure as measure_module
from vlpress.eval.fidelity import teacher_forcing
from vlpress.eval.fidelity.divergences import summarize_fidelity, unit_divergences
from vlpress.eval.fidelity.logprob_cache import LogProbReader
from vlpress.eval.fidelity.measure import (
    compute_divergence,
    compute_lumped_divergence,
    measure_task,
    store_logprobs,
)
from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.task import Task
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    package_files(tmp_path, monkeypatch)
    return open_task("builtin-ocrbench")


def stored(task: Task, text: str = "abc", stopped: bool = True) -> dict[str, Prediction]:
    return {i.id: Prediction(i.id, text, len(text), stopped, 0.1) for i in task.items}


def measure(
    task: Task, base: QwenVL, cand: QwenVL, processor: Processor, path: Path, **answer: Any
) -> dict[str, dict[str, Any]]:
    answers, folder = stored(task, **answer), path.with_suffix("")
    features = FeatureCache(base, processor)
    store_logprobs(task, features, answers, folder, {"a": 1}, batch_size=4)
    if cand is not base:
        features = FeatureCache(cand, processor)
    reader = LogProbReader(folder)
    return measure_task(task, features, answers, reader, path, {"a": 1}, batch_size=4)


def test_divergence_against_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(300, 17, generator=generator) * 3
    candidate = base + torch.randn(300, 17, generator=generator)
    expected = entropy(
        base.softmax(-1).double().numpy(), candidate.softmax(-1).double().numpy(), axis=1
    )
    assert np.allclose(compute_divergence(base, candidate).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_divergence_is_zero_only_for_equal_distributions() -> None:
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))
    assert compute_divergence(logits, logits + 3.0).max() < 1e-6
    assert compute_divergence(logits, logits * 2).min() > 0
    assert compute_divergence(logits[:0], logits[:0]).shape == (0,)


def test_divergence_refuses_logits_that_are_not_finite() -> None:
    logits = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="not finite"):
        compute_divergence(logits, logits.clone().fill_(torch.nan))


def test_a_model_does_not_differ_from_itself(
    task: Task, processor: Processor, tmp_path: Path
) -> None:
    model = small_model()
    records = measure(task, model, model, processor, tmp_path / "f.jsonl")
    assert [len(r["kl"]) for r in records.values()] == [3] * 9
    summary = summarize_fidelity(records.values())
    assert summary is not None
    assert (summary["tokens"], summary["kl_kind"], summary["top1_agreement"]) == (27, "full", 1.0)
    assert summary["kl_max"] < 1e-6
    assert summary["rms_dp"] < 1e-6
    assert summary["first_token"]["tokens"] == summary["end_of_turn"]["tokens"] == 9


def test_records_equal_a_direct_computation(
    task: Task, processor: Processor, tmp_path: Path
) -> None:
    base, cand = small_model(), small_model(1)
    records = measure(task, base, cand, processor, tmp_path / "f.jsonl", text="xyz!")
    for item in task.items[:3]:
        prompt = processor.encode(read_messages(item), answer="xyz!")
        start = len(processor.encode(read_messages(item))) - 1
        p, q = base([prompt])[0][start:-1], cand([prompt])[0][start:-1]
        kl = compute_divergence(p, q).tolist()
        assert records[item.id]["kl"] == pytest.approx(kl[:-1], rel=1e-3)
        assert records[item.id]["end"]["kl"] == pytest.approx(kl[-1], rel=1e-3)
        same = (p.argmax(-1) == q.argmax(-1)).int().tolist()
        assert records[item.id]["top1"] == same[:-1]
        tokens = prompt.input_ids[start + 1 :]
        dp = (q.softmax(-1) - p.softmax(-1)).gather(-1, tokens[:, None])[:, 0].tolist()
        assert records[item.id]["dp"] == pytest.approx(dp[:-1], abs=1e-6)


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
    monkeypatch.setattr(teacher_forcing, "ANSWER_TOKENS", 5)
    cut = measure(task, base, cand, processor, tmp_path / "b.jsonl", text="abcdefgh")
    for key in cut:
        assert cut[key]["kl"] == pytest.approx(whole[key]["kl"][:5], rel=1e-3)
        assert cut[key]["end"] is None


@pytest.mark.parametrize("stage", ["base", "candidate"])
def test_measurement_resumes(
    task: Task, processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    base, cand = small_model(), small_model(1)
    path = tmp_path / "f.jsonl"
    whole = measure(task, base, cand, processor, tmp_path / "whole.jsonl")
    calls: list[str] = []
    left = {"base": 2, "candidate": 5}[stage]  # the base's reading takes three batches
    original = teacher_forcing.read_answers

    def limited(features: Any, items: Any, answers: Any) -> Any:
        if len(batches) == left:
            raise KeyboardInterrupt
        batches.append([item.id for item in items])
        return original(features, items, answers)

    batches: list[list[str]] = []
    monkeypatch.setattr(measure_module, "read_answers", limited)
    with pytest.raises(KeyboardInterrupt):
        measure(task, base, cand, processor, path)
    left = 99
    calls = [key for batch in batches for key in batch]
    assert measure(task, base, cand, processor, path) == whole
    asked = [key for batch in batches for key in batch]
    assert len(asked) == 2 * len(task.items)
    assert asked[: len(calls)] == calls


def test_lumped_divergence_by_hand() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2]])
    q = torch.tensor([[0.4, 0.2, 0.4]])
    ids = torch.tensor([[0]])
    found = compute_lumped_divergence(p.log()[:, :1], ids, torch.tensor([0.5]), q.log())
    expected = 0.5 * np.log(0.5 / 0.4) + 0.5 * np.log(0.5 / 0.6)
    assert found.tolist() == pytest.approx([expected], rel=1e-6)


def test_lumped_divergence_is_never_above_the_full_one(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(200, 50, generator=generator) * 2
    candidate = base + torch.randn(200, 50, generator=generator)
    full = compute_divergence(base, candidate)
    last = torch.zeros(200)
    for top in (1, 5, 20, 49):
        monkeypatch.setattr(stored_logprobs, "TOP", top)
        lumped = compute_lumped_divergence(*lump(base.log_softmax(-1)), candidate)
        assert (lumped <= full + 1e-6).all()
        assert (lumped >= last - 1e-6).all()  # finer lumps lose less
        last = lumped
    monkeypatch.setattr(stored_logprobs, "TOP", 50)
    whole = compute_lumped_divergence(*lump(base.log_softmax(-1)), candidate)
    assert torch.allclose(whole, full, atol=1e-5)


def test_many_tokens_are_stored_lumped(
    task: Task, processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, cand = small_model(), small_model(1)
    full = measure(task, base, cand, processor, tmp_path / "full.jsonl")
    monkeypatch.setattr(stored_logprobs, "FULL_BYTES", 1000)
    monkeypatch.setattr(stored_logprobs, "TOP", 16)
    lumped = measure(task, base, cand, processor, tmp_path / "lumped.jsonl")
    assert LogProbReader(tmp_path / "full").kind == "full"
    assert LogProbReader(tmp_path / "lumped").kind == "lumped"
    for key in full:
        assert "kl_lumped" not in lumped[key]
        assert all(a <= b + 1e-6 for a, b in zip(lumped[key]["kl"], full[key]["kl"], strict=True))
        assert lumped[key]["top1"] == full[key]["top1"]
    monkeypatch.undo()
    mixed = [*lumped.values(), *full.values()]
    summary = summarize_fidelity(mixed)
    assert summary is not None
    assert summary["kl_kind"] == "lumped"


def test_stored_log_probabilities_are_close_to_the_computed_ones(
    task: Task, processor: Processor, tmp_path: Path
) -> None:
    base, cand = small_model(), small_model(1)
    cand.load_state_dict(
        {
            key: value + 0.01 * (cand.state_dict()[key] - value)
            for key, value in base.state_dict().items()
        }
    )
    records = measure(task, base, cand, processor, tmp_path / "f.jsonl", text="xyz!")
    for item in task.items:
        prompt = processor.encode(read_messages(item), answer="xyz!")
        start = len(processor.encode(read_messages(item))) - 1
        p, q = base([prompt])[0][start:-1], cand([prompt])[0][start:-1]
        assert records[item.id]["kl"] == pytest.approx(
            compute_divergence(p, q).tolist()[:-1], rel=2e-2, abs=1e-6
        )


def test_gold_letter_of_a_choice(
    processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package_files(tmp_path, monkeypatch)
    task = open_task("builtin-mmbench", limit=1)
    base, cand = small_model(), small_model(1)
    records = measure(task, base, cand, processor, tmp_path / "f.jsonl")
    token = processor.tokenizer.encode
    for item in task.items:
        prompt = processor.encode(read_messages(item))
        letters = {k: token(k, add_special_tokens=False) for k in item.fields["choices"]}
        assert all(len(ids) == 1 for ids in letters.values())
        found = [model([prompt])[0][-1].log_softmax(-1) for model in (base, cand)]
        gold = letters[item.fields["answer"]][0]
        expected = [float(row[gold]) for row in found]
        assert records[item.id]["gold"] == pytest.approx(expected, abs=1e-4)
        options = [ids[0] for ids in letters.values()]
        among = [float(row[gold] - row[options].logsumexp(0)) for row in found]
        assert records[item.id]["choice"] == pytest.approx(among, abs=1e-4)


def test_questions_without_options_have_no_gold_letter(
    task: Task, processor: Processor, tmp_path: Path
) -> None:
    records = measure(task, small_model(), small_model(1), processor, tmp_path / "f.jsonl")
    assert all("gold" not in record for record in records.values())


def test_a_damaged_store_is_named(task: Task, processor: Processor, tmp_path: Path) -> None:
    measure(task, small_model(), small_model(1), processor, tmp_path / "f.jsonl")
    (tmp_path / "f.jsonl").unlink()
    next((tmp_path / "f").glob("*.safetensors")).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"\.safetensors"):
        measure(task, small_model(), small_model(1), processor, tmp_path / "f.jsonl")


def test_units_average_their_rows() -> None:
    items = [{"id": "a", "unit": "1"}, {"id": "b", "unit": "1"}, {"id": "c", "unit": "2"}]
    records: dict[str, dict[str, Any]] = {
        "a": {"kl": [1.0, 3.0]},
        "b": {"kl": [4.0]},
        "c": {"kl": []},
    }
    assert unit_divergences(items, records) == {"1": 3.0}


def test_empty_answers_take_no_room(
    task: Task, processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()
    # Two rows for each of the nine items: the end of turn, and one to spare.
    monkeypatch.setattr(stored_logprobs, "FULL_BYTES", 2 * model.config.text.vocab_size * 18)
    measure(task, model, model, processor, tmp_path / "f.jsonl", text="")
    assert LogProbReader(tmp_path / "f").kind == "full"
