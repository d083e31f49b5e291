"""The comparison of an engine's answers must detect differences, and judge refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import commands
import pytest
import torch
from answering_engines import comparison, jobs
from answering_engines.comparison import Answer, Difference, Reference
from answering_engines.jobs import Case
from tiny_models import make_random_model, write_checkpoint_folder

from vlpress.model.processing.processor import Processor

FIRST = torch.tensor([0.7, 0.2, 0.1]).log()
REFERENCE = Reference(
    {"q1": "A", "q2": "B"}, {"q1": 10, "q2": 20}, {"q1": FIRST, "q2": FIRST}, Difference(1e-4, 1e-5)
)
SAME = {
    "q1": Answer("A", 10, {0: float(FIRST[0]), 1: float(FIRST[1])}),
    "q2": Answer("B", 20, {0: float(FIRST[0])}),
}


def test_equal_answers_pass() -> None:
    agreement = comparison.compare(REFERENCE, SAME)
    assert agreement.passed
    assert (agreement.questions, agreement.same_answers) == (2, 2)
    assert agreement.difference == Difference(0.0, 0.0)


@pytest.mark.parametrize(
    ("change", "same_answers", "same_lengths"),
    [
        ({"text": "A."}, 1, 2),
        ({"prompt_tokens": 11}, 2, 1),
        ({"first": {0: float(FIRST[0]) - 2e-4}}, 2, 2),  # above the largest
        ({"first": {0: float(FIRST[0]) - 5e-5}}, 2, 2),  # above the mean only
        ({"first": {0: math.nan}}, 2, 2),
    ],
)
def test_one_difference_fails(change: dict[str, Any], same_answers: int, same_lengths: int) -> None:
    agreement = comparison.compare(REFERENCE, SAME | {"q1": replace(SAME["q1"], **change)})
    assert not agreement.passed
    assert (agreement.same_answers, agreement.same_prompt_lengths) == (same_answers, same_lengths)


def test_differing_answers_are_shown() -> None:
    agreement = comparison.compare(REFERENCE, SAME | {"q2": replace(SAME["q2"], text="C")})
    (example,) = agreement.examples
    assert "q2" in example and "'C'" in example and "'B'" in example


@pytest.mark.parametrize(("margin", "passed"), [(5e-5, True), (-5e-5, True), (2e-4, False)])
def test_another_answer_passes_at_a_tie(margin: float, passed: bool) -> None:
    reference = replace(REFERENCE, margin=lambda key, text: margin if text == "C" else math.inf)
    other = SAME | {"q2": replace(SAME["q2"], text="C")}
    agreement = comparison.compare(reference, other)
    assert (agreement.passed, agreement.ties, agreement.same_answers) == (passed, int(passed), 1)
    assert f"{margin:.2g} nats" in agreement.examples[0]
    assert ("but for ties" in jobs.judge(Case("gptq", "w4a16"), agreement)[0]) == passed


def test_margin_is_that_of_the_first_difference(tmp_path: Path) -> None:
    model = make_random_model()
    processor = Processor.from_folder(write_checkpoint_folder(tmp_path / "m"))
    item = next(iter(comparison.questions().values()))
    rows = []
    for text in ("Yes, one.", "Yes, two."):
        prompt = comparison.encode(processor, item, text)
        count = prompt.answer_tokens
        with torch.inference_mode():
            logits = model([prompt], None, [count + 1])[0][:-1].log_softmax(-1)
        rows.append((prompt.input_ids[-count:].tolist(), logits))
    (ids, logits), (others, _) = rows
    first = next(n for n, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b)
    assert first > 0
    expected = float(logits[first, ids[first]] - logits[first, others[first]])
    of = [comparison.margin(model, processor, item, "Yes, one.", t) for t in ("Yes, two.", "")]
    assert of[0] == pytest.approx(expected, abs=1e-6) and of[1] == math.inf


def test_missing_question_is_an_error() -> None:
    with pytest.raises(ValueError, match="q2"):
        comparison.compare(REFERENCE, {"q1": SAME["q1"]})


def test_difference_of_known_values() -> None:
    pairs = [
        (FIRST, {0: float(FIRST[0]) + 0.5, 2: float(FIRST[2]) - 0.1}),
        (FIRST, {1: -1.0}),
        (FIRST, {}),
    ]
    difference = comparison.logprob_difference(pairs)
    assert difference is not None
    second = abs(float(FIRST[1]) + 1.0)
    assert difference.largest == pytest.approx(max(0.5, second), abs=1e-6)
    assert difference.mean == pytest.approx((0.3 + second) / 2, abs=1e-6)


def test_engine_without_log_probabilities_is_judged_by_its_answers() -> None:
    plain = {key: replace(answer, first={}) for key, answer in SAME.items()}
    agreement = comparison.compare(REFERENCE, plain)
    assert agreement.difference is None and agreement.passed


def test_noise_moves_a_model_and_is_removed(tmp_path: Path) -> None:
    model = make_random_model()
    processor = Processor.from_folder(write_checkpoint_folder(tmp_path / "m"))
    prompts = [processor.encode([{"role": "user", "content": text}]) for text in ("Hi", "There")]
    with torch.inference_mode():
        first = comparison.first_logprobs(model, prompts)
        spread = comparison.noise_spread(model, prompts, first)
        again = comparison.first_logprobs(model, prompts)
    assert 0 < spread.mean <= spread.largest < 1e-3
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_sample_is_spread_over_the_questions() -> None:
    items: Any = {str(i): i for i in range(68)}
    assert list(comparison.sample(items, 12)) == [str(i) for i in range(0, 60, 5)]


KNOWN = "(uint8b128) not supported"


@pytest.mark.parametrize(
    ("expected", "error", "passed"),
    [
        (KNOWN, f"ValueError: Quant type {KNOWN} by CPUWNA16", True),
        (KNOWN, "ValueError: something else", False),
        (None, f"ValueError: Quant type {KNOWN} by CPUWNA16", False),
    ],
)
def test_only_the_known_refusal_passes(expected: str | None, error: str, passed: bool) -> None:
    text, result = jobs.judge_refusal(expected, error)
    assert result is passed
    assert (KNOWN if passed else error) in text


def test_accepting_a_checkpoint_that_was_refused_is_noticed() -> None:
    agreement = comparison.compare(REFERENCE, SAME)
    assert jobs.judge(Case("gptq", "w4a16"), agreement)[1]
    text, passed = jobs.judge(Case("gptq", "w8a16", refusal=KNOWN), agreement)
    assert not passed and KNOWN in text


def test_result_of_other_inputs_is_not_used(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    job = {"out": str(out), "key": "1"}
    assert jobs.read_result(job) is None
    out.write_text('{"key": "1", "answers": {}}', encoding="utf-8")
    assert jobs.read_result(job) is not None
    assert jobs.read_result(job | {"key": "2"}) is None


@pytest.mark.parametrize(
    ("result", "due"),
    [
        ({"answers": {}}, False),
        ({"error": f"ValueError: {KNOWN}"}, False),
        ({"error": "RuntimeError: no memory"}, True),
    ],
)
def test_unexpected_errors_are_tried_again(
    result: dict[str, Any], due: bool, tmp_path: Path
) -> None:
    out = tmp_path / "result.json"
    out.write_text(json.dumps({"key": "1", **result}), encoding="utf-8")
    job = {"out": str(out), "key": "1", "refusal": KNOWN}
    assert jobs.is_due(job) is due


def test_key_depends_on_checkpoint_and_settings(tmp_path: Path) -> None:
    worker = jobs.Worker("e", tmp_path, [], Path(__file__), {}, str, str)
    weights = tmp_path / "model.safetensors"
    keys = set()
    for content, dtype in (("1", "float32"), ("2", "float32"), ("2", "bfloat16")):
        weights.write_text(content, encoding="utf-8")
        keys.add(worker.key(tmp_path, {"dtype": dtype}))
    assert len(keys) == 3
    assert worker.key(tmp_path, {"dtype": "bfloat16"}) in keys


def test_an_engine_reads_the_export_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Path, str, Path]] = []
    monkeypatch.setattr(commands, "export", lambda *given: calls.append(given))
    checkpoint = tmp_path / "gptq" / "w4a16"
    plain, exported = Case("gptq", "w4a16"), Case("gptq", "w4a16", deployment="onnx")
    assert jobs.readable(plain, checkpoint, tmp_path) == checkpoint and not calls
    folder = jobs.readable(exported, checkpoint, tmp_path)
    assert calls == [(checkpoint, "onnx", folder)]
    assert plain.name("tiny") != exported.name("tiny")
    assert (plain.described, exported.described) == ("gptq", "onnx of gptq")
