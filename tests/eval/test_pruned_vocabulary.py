"""Evaluation of a model with a pruned vocabulary against the original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from small_run import BENCH
from tokenizers import Tokenizer
from trained_tokenizers import write_source

import vlpress
from vlpress.eval.api import compare, evaluate
from vlpress.eval.fingerprint import setup_differences
from vlpress.eval.results import read_run
from vlpress.model.config import ModelConfig
from vlpress.quant.vocabulary.pruning import Pruning

pytestmark = [pytest.mark.usefixtures("short_answers"), pytest.mark.slow]
QUESTIONS: dict[str, Any] = {"bench": BENCH, "limit": 4, "batch_size": 4}


@pytest.fixture(scope="module")
def runs(trained: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Evaluations of an original that prefers kept tokens, and of the pruned model.

    All tokens in ASCII letters are kept, so the prompts have the same ones.
    """
    folder = tmp_path_factory.mktemp("pruned")
    source = write_source(folder / "source", trained, "qwen2_5_vl", tied=False)
    texts = [trained.decode([i]) for i in range(trained.get_vocab_size())]
    (folder / "a.txt").write_text("\n".join(text for text in texts if text.isascii()))
    recipe = folder / "recipe.toml"
    named = json.dumps([str(folder / "a.txt")])
    recipe.write_text(f'[[step]]\nmethod = "prune_vocab"\ntexts = {named}\ntokens = 704\n')
    config = ModelConfig.from_folder(source)
    chosen = Pruning.choose(source, config, [str(folder / "a.txt")], [], size=704, multiple=64)
    gone = [row for row in range(config.text.vocab_size) if row not in chosen.kept.new_ids]
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"][gone] = 0
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    vlpress.quantize(source, folder / "small", recipe=str(recipe), device="cpu")
    base, candidate = folder / "base", folder / "candidate"
    evaluate(source, base, device="cpu", **QUESTIONS)
    evaluate(folder / "small", candidate, device="cpu", reference=base, **QUESTIONS)
    return base, candidate


def test_the_same_answers_have_no_divergence_over_common_tokens(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    base, candidate = map(read_run, runs)
    texts = [
        {key: answer.text for key, answer in run.tasks[BENCH].predictions.items()}
        for run in (base, candidate)
    ]
    assert texts[0] == texts[1]
    report = compare(*runs, tmp_path / "report")
    fidelity = report["fidelity"]
    assert fidelity["kl_kind"] == "common"
    # The base's log-probabilities are stored in fp16.
    assert fidelity["kl_mean"] < 1e-4
    assert fidelity["top1_agreement"] == 1
    left = fidelity["vocabulary"]
    assert left["answers"] == 4 > left["answers_left_out"]
    assert 0 < left["removed_mass"] < 0.5
    [note] = report["notes"]
    assert "all -> 704 of 1280" in note
    written = (tmp_path / "report" / "report.md").read_text("utf-8")
    assert "over the tokens that both vocabularies have" in written
    assert note.replace(">", "\\>") in written


def test_a_vocabulary_of_another_original_is_another_setup(runs: tuple[Path, Path]) -> None:
    base, candidate = (read_run(run).fingerprint for run in runs)
    assert base["text"] != candidate["text"]
    assert setup_differences(base, candidate) == []
    vocabulary = candidate["vocabulary"]
    other = {**vocabulary, "original": {**vocabulary["original"], "tokenizer": "another"}}
    [difference] = setup_differences(base, {**candidate, "vocabulary": other})
    assert difference.startswith("text.tokenizer: ")


def test_perplexities_of_different_tokens_are_not_compared(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    base, candidate = tmp_path / "base", tmp_path / "candidate"
    for run, copy in zip(runs, (base, candidate), strict=True):
        for path in run.rglob("*"):
            target = copy / path.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                target.write_bytes(path.read_bytes())
        (copy / "text.jsonl").write_text("")
    report = compare(base, candidate, tmp_path / "report")
    assert report["perplexity"] is None
    assert "perplexities are of other tokens" in report["notes"][0]


@pytest.mark.slow
def test_candidates_over_different_tokens_have_no_difference_in_divergence(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    base, candidate = runs
    again = tmp_path / "again"
    evaluate(base.parent / "source", again, device="cpu", reference=base, **QUESTIONS)
    both = compare(base, [candidate, again], tmp_path / "report")
    [pair] = both["pairs"]
    assert pair["benchmarks"][BENCH]["kl_delta"] is None
    assert both["pareto"]["kl_mean"] is None
    assert both["pareto"]["mean_score"] is not None
