from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from eval_models import small_model

from vlpress.eval.fidelity import perplexity
from vlpress.eval.fidelity.perplexity import (
    FILE,
    compare_text,
    measure_text,
    read_text,
    split_windows,
)
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor

TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 12


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    original = split_windows

    def short(text: str, processor: Processor) -> list[torch.Tensor]:
        return original(text, processor, 40)

    monkeypatch.setattr(perplexity, "split_windows", short)


def run(folder: Path, processor: Processor, seed: int = 0, text: str = TEXT) -> Path:
    folder.mkdir(exist_ok=True)
    measure_text(text, small_model(seed), processor, folder / FILE, {"a": 1})
    return folder


def test_windows_hold_every_token_once(processor: Processor) -> None:
    ids = processor.tokenizer.encode(TEXT, add_special_tokens=False)
    parts = split_windows(TEXT, processor, 40)
    assert torch.cat(parts).tolist() == ids
    assert {len(part) for part in parts[:-1]} == {40}
    assert len(split_windows(TEXT, processor, len(ids) - 1)) == 1  # a single token predicts nothing
    with pytest.raises(ValueError, match="1 tokens"):
        split_windows("a", processor)


def test_perplexity_equals_a_direct_computation(processor: Processor, tmp_path: Path) -> None:
    out = run(tmp_path / "a", processor)
    model, losses = small_model(), []
    for ids in split_windows(TEXT, processor, 40):
        logits = model([Prompt(ids, torch.arange(len(ids)).expand(3, -1))])[0]
        rows = logits[:-1].log_softmax(-1)
        losses += [-float(rows[i, token]) for i, token in enumerate(ids[1:].tolist())]
    found = compare_text(out, out)
    assert found is not None
    assert found["tokens"] == len(losses)
    assert found["base"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert (found["ratio"], found["ratio_ci95"]) == (1.0, [1.0, 1.0])


def test_ratio_of_two_models_with_its_interval(processor: Processor, tmp_path: Path) -> None:
    base, other = run(tmp_path / "a", processor), run(tmp_path / "b", processor, seed=1)
    found = compare_text(base, other)
    assert found is not None
    assert found["ratio"] == pytest.approx(found["candidate"] / found["base"])
    low, high = found["ratio_ci95"]
    assert low < found["ratio"] < high


def test_measurement_resumes(
    processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", processor)
    original, calls = perplexity._compute_nll, 0

    def limited(model: object, ids: torch.Tensor) -> float:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(model, ids)  # type: ignore[arg-type]

    monkeypatch.setattr(perplexity, "_compute_nll", limited)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", processor)
    with pytest.raises(ValueError, match="--text"):
        compare_text(whole, tmp_path / "cut")
    run(tmp_path / "cut", processor)
    assert (tmp_path / "cut" / FILE).read_bytes() == (whole / FILE).read_bytes()


def test_other_texts_are_not_compared(processor: Processor, tmp_path: Path) -> None:
    base = run(tmp_path / "a", processor)
    assert compare_text(base, tmp_path) is None
    other = run(tmp_path / "b", processor, text=TEXT[1:])
    with pytest.raises(ValueError, match="--text"):
        compare_text(base, other)


def test_text_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x\n\ny", "utf-8")
    assert read_text(tmp_path / "a.txt") == "x\n\ny"
    lines = [json.dumps({"text": part}) for part in ("x", "y")]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    assert read_text(tmp_path / "a.jsonl") == "x\n\ny"
    (tmp_path / "b.jsonl").write_text(lines[0] + "\n[1]\n", "utf-8")
    with pytest.raises(ValueError, match=r'b\.jsonl:2 .*"text"'):
        read_text(tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").write_text('{"text": 3}', "utf-8")
    with pytest.raises(ValueError, match=r'c\.jsonl:1: "text"'):
        read_text(tmp_path / "c.jsonl")
    (tmp_path / "d.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"d\.txt .*UTF-8"):
        read_text(tmp_path / "d.txt")
    with pytest.raises(ValueError, match=r"\.txt or \.jsonl"):
        read_text(Path(__file__))
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        read_text(tmp_path / "none.txt")
