"""Evaluations of models that drop visual tokens, and their comparison with the original."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from small_run import BENCH, QUESTIONS
from tiny_models import RandomModel
from typer.testing import CliRunner

from vlpress.cli import main
from vlpress.eval import open_task
from vlpress.eval.answering.predictions import Prediction
from vlpress.eval.answering.vision_features import FeatureCache
from vlpress.eval.api import compare, evaluate
from vlpress.eval.config import EvaluateOptions
from vlpress.eval.fidelity.teacher_forcing import read_answers
from vlpress.eval.results import read_fidelity, read_run
from vlpress.eval.run import run
from vlpress.model.processing.processor import Processor
from vlpress.model.token_reduction.random_tokens import Random

pytestmark = pytest.mark.usefixtures("short_answers")
RULE = "random:keep=0.5,seed=0"


@pytest.fixture(scope="module")
def runs(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An evaluation, and one with half of the visual tokens that has the first as its reference."""
    folder = tmp_path_factory.mktemp("reduced")
    base, candidate = folder / "base", folder / "candidate"
    evaluate(checkpoint, base, device="cpu", **QUESTIONS)
    evaluate(checkpoint, candidate, device="cpu", reference=base, reduce=RULE, **QUESTIONS)
    return base, candidate


def test_fingerprint_has_the_rule_of_a_reduced_model_alone(runs: tuple[Path, Path]) -> None:
    base, candidate = map(read_run, runs)
    assert "visual_tokens" not in base.fingerprint
    rule = candidate.fingerprint["visual_tokens"]
    assert rule == {"method": "random", "keep": 0.5, "seed": 0}
    others = {k: v for k, v in candidate.fingerprint.items() if k != "visual_tokens"}
    assert others == base.fingerprint


def test_answers_record_kept_and_all_visual_tokens(runs: tuple[Path, Path]) -> None:
    whole, reduced = (read_run(run).tasks[BENCH].predictions for run in runs)
    assert all(answer.visual_tokens is None for answer in whole.values())
    for key, answer in reduced.items():
        kept, total = answer.visual_tokens or (0, 0)
        assert 0 < kept == round(total / 2)
        assert answer.prompt_tokens == whole[key].prompt_tokens
    assert "visual_tokens" not in (runs[0] / BENCH / "predictions.jsonl").read_text()


def test_divergence_is_that_of_the_same_answers(runs: tuple[Path, Path]) -> None:
    candidate = read_run(runs[1])
    records = read_fidelity(candidate.tasks[BENCH]) or {}
    assert len(records) == 6
    scores = json.loads((runs[1] / "scores.json").read_text())
    assert scores["fidelity"][BENCH]["kl_mean"] > 0
    assert 0.4 < scores["benchmarks"][BENCH]["visual_tokens"]["retention"] < 0.6
    assert "visual_tokens" not in json.loads((runs[0] / "scores.json").read_text())["benchmarks"]


def test_divergence_reads_the_same_answer_tokens(
    processor: Processor, random_model: RandomModel
) -> None:
    model, items = random_model(), open_task(BENCH, limit=2).items
    answers = [Prediction(item.id, "blue", 2, True, 0.0) for item in items]
    whole = read_answers(FeatureCache(model, processor), items, answers)
    model.reduction = Random(keep=0.5)
    reduced = read_answers(FeatureCache(model, processor), items, answers)
    for one, other in zip(whole, reduced, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert one.logits.shape == other.logits.shape and one.ended == other.ended
        assert not torch.allclose(one.logits, other.logits)


def test_report_states_the_rule_and_the_retention(runs: tuple[Path, Path], tmp_path: Path) -> None:
    report = compare(*runs, tmp_path)
    counts = report["visual_tokens"]["candidate"]["benchmarks"][BENCH]
    assert report["visual_tokens"]["base"] is None
    assert counts["retention"] == counts["kept"] / counts["total"]
    sentence = (
        f"The candidate computed with a part of the visual tokens: {RULE}, applied by vlpress "
        f"only; vLLM ignores it for images. Kept: {BENCH} {100 * counts['retention']:.1f} % "
    )
    assert sentence in (tmp_path / "report.html").read_text("utf-8")
    assert sentence in (tmp_path / "report.md").read_text("utf-8")
    evaluations = [shlex.split(part) for part in report["command"].split(" && ")][:2]
    assert ["--reduce" in words for words in evaluations] == [False, True]
    assert RULE in evaluations[1]
    assert "visual_tokens" not in compare(runs[0], runs[0], tmp_path / "plain")


def test_keeping_all_tokens_gives_the_same_answers(
    checkpoint: Path, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    evaluate(checkpoint, tmp_path, device="cpu", reduce="divprune:keep=1", **QUESTIONS)
    whole, all_kept = (read_run(run).tasks[BENCH].predictions for run in (runs[0], tmp_path))
    assert {k: p.prediction for k, p in whole.items()} == {
        k: p.prediction for k, p in all_kept.items()
    }


def test_stored_answers_of_another_rule_are_refused(
    checkpoint: Path, runs: tuple[Path, Path]
) -> None:
    for rule in ("recipe", "random:keep=0.5,seed=1"):
        with pytest.raises(ValueError, match=r"visual_tokens"):
            evaluate(checkpoint, runs[1], device="cpu", reduce=rule, **QUESTIONS)


def test_reduced_original_is_reduced_for_its_log_probabilities_too(
    checkpoint: Path, tmp_path: Path
) -> None:
    base, same = tmp_path / "base", tmp_path / "same"
    evaluate(checkpoint, base, device="cpu", reduce=RULE, **QUESTIONS)
    evaluate(checkpoint, same, device="cpu", reduce=RULE, reference=base, **QUESTIONS)
    assert json.loads((same / "scores.json").read_text())["fidelity"][BENCH]["kl_mean"] < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m", "--reduce", "dart"], "reduce.method is 'dart'; allowed: duplicates, divprune, ran"),
        (["m", "--reduce", "divprune:keep=0"], "reduce.keep is 0; allowed: a number above 0, at"),
        (["m", "--reduce", "random:keep=1.1"], "reduce.keep is 1.1; allowed: a number above 0, a"),
        (["--endpoint", "h", "--reduce", RULE], "and --reduce are for a MODEL here, not an endpo"),
    ],
)
def test_unusable_rules_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["eval", *arguments, "-o", "out", "--bench", BENCH, "--prompt-style", "default"]
    result = CliRunner().invoke(main.app, command)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("vlpress: error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_option_of_python_is_checked_as_well() -> None:
    assert EvaluateOptions("m", reduce="duplicates").reduce == "duplicates"
    with pytest.raises(ValueError, match=r"reduce.keep is missing"):
        EvaluateOptions("m", reduce="random")


@pytest.mark.slow
def test_run_reduces_the_candidate_alone(checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[vision_input]\nreduce = { method = "divprune", keep = 0.5 }\n'
        '[[step]]\nmethod = "gptq"\nbits = 4\ngroup_size = 32\ntargets = ["decoder"]\n'
    )
    out = tmp_path / "out"
    report = run(
        checkpoint, out=out, recipe=str(recipe), calib_samples=2, device="cpu", **QUESTIONS
    )
    sides = report["visual_tokens"]
    assert sides["base"] is None
    assert sides["candidate"]["rule"] == {"method": "divprune", "keep": 0.5}
    assert 0.4 < sides["candidate"]["benchmarks"][BENCH]["retention"] < 0.6
    assert report["fidelity"]["kl_mean"] > 0
    card = (out / "checkpoint" / "README.md").read_text()
    assert "Visual tokens: divprune:keep=0.5 (applied by vlpress only" in card
    # Measured in alternation, each model with its own visual tokens.
    assert report["speed"]["alternating"]["prefill_tokens_per_second"]["ratio"] > 0
