"""The choice among draws, and rotated checkpoints in transformers and in the quantize verb."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from reference_model import reference_logits
from tiny_models import FAMILIES, prompts, small_config, small_model, write_checkpoint_folder

import vlpress
from vlpress.calib.samples.draw import load_samples
from vlpress.model.config import ModelConfig
from vlpress.model.loading import load_model
from vlpress.quant.config import ModelSettings
from vlpress.quant.prepare.context import Context
from vlpress.quant.prepare.rotations.trials import answer_scores, rounding_recipe
from vlpress.quant.prepare.running import prepare_checkpoint
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.scheme import QuantScheme
from vlpress.quant.resolve import Source, encode_samples
from vlpress.quant.steps.rotate import RotateStep
from vlpress.quant.steps.rtn import RTNStep

CPU = ModelSettings(device="cpu")
ROTATE: dict[str, Any] = {"method": "rotate", "seeds": 2, "samples": 2}
STATIC: dict[str, Any] = {"method": "gptq", "bits": 8, "group_size": -1, "activations": "static"}


def recipe_of(*steps: dict[str, Any], **calibration: Any) -> Recipe:
    return Recipe.from_dict({"name": "test", "step": list(steps), "calibration": calibration})


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "qwen2_5_vl"]


@pytest.mark.parametrize("family", ["qwen2_5_vl", *SLOW])
def test_transformers_gives_our_logits(family: str, tmp_path: Path) -> None:
    model = small_model(small_config(family))
    source = write_checkpoint_folder(tmp_path / "source", model, tokenizer=False)
    prepare_checkpoint(RotateStep(), source, tmp_path / "out", Context(recipe_of(ROTATE, STATIC)))
    theirs: Any = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", dtype="float32"
    )
    ours = load_model(tmp_path / "out", device="cpu")
    sample = prompts(model.config)[1]
    with torch.no_grad():
        mine, original = ours([sample])[0], model([sample])[0]
    reference = reference_logits(theirs, sample)
    # The other order of sums in linear attention moves shares of experts.
    bound = 5e-4 if family == "qwen3_5_moe" else 1e-4
    for other in (mine, original):
        assert float((reference - other).abs().max()) < bound * float(reference.abs().max())


def test_scores_of_answers_are_those_of_the_model_in_memory(checkpoint: Path) -> None:
    source = Source.find(checkpoint, CPU)
    samples = encode_samples(load_samples(None, n=2, seed=3), source.processor())
    context = Context(recipe_of(ROTATE, STATIC), settings=CPU)
    streamed = answer_scores(checkpoint, samples, context)
    model = load_model(checkpoint, device="cpu")
    for sample, scores in zip(samples, streamed, strict=True):
        with torch.no_grad():
            logits = model([sample])[0].float()
        expected = logits.log_softmax(-1)[-sample.answer_tokens - 1 : -1]
        assert scores.shape == (sample.answer_tokens, model.config.text.vocab_size)
        assert torch.allclose(scores, expected, atol=1e-4)


def test_draws_are_compared_on_rounded_layers() -> None:
    recipe = rounding_recipe(recipe_of(ROTATE, {"method": "smoothquant"}, STATIC))
    (step,) = recipe.steps
    assert isinstance(step, RTNStep) and step.scheme == QuantScheme(8, -1, activations="static")
    assert not recipe.preparations and not recipe.transforms


@pytest.mark.parametrize("repeats", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_best_draw_is_taken(repeats: int, checkpoint: Path, tmp_path: Path) -> None:
    recipe = recipe_of(ROTATE, STATIC, samples=2)
    samples = load_samples(None, n=2, seed=0)
    (step,) = recipe.preparations
    context = Context(recipe, samples, CPU)
    names = ["a", "b"][:repeats]
    records = [prepare_checkpoint(step, checkpoint, tmp_path / n, context) for n in names]
    for record in records:
        assert len(record["kl"]) == 2 and record["kl"][record["draw"]] == min(record["kl"]) > 0
    files = {(tmp_path / name / "model.safetensors").read_bytes() for name in names}
    assert len(files) == 1 and records[0] == records[-1]
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def test_a_recipe_with_a_rotation(checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[step]]\nmethod = "rotate"\n[[step]]\nmethod = "rtn"\nbits = 8\n')
    result = vlpress.quantize(checkpoint, tmp_path / "out", recipe=str(recipe), device="cpu")
    (entry,) = result["preparations"]
    assert entry["method"] == "rotate" and "Hadamard 128 (R1)" in entry["summary"]
    config = ModelConfig.from_folder(tmp_path / "out")
    assert not config.text.tie_word_embeddings
    record = json.loads((tmp_path / "out" / "vlpress.json").read_text())
    assert record["preparations"] == [entry] and record["calibration"] is None


def test_refusals(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rotate: seeds is 2, .*; no step quantizes; change it"):
        recipe_of(ROTATE)
    silent = Context(recipe_of(ROTATE, STATIC), (), CPU)
    with pytest.raises(ValueError, match="seeds needs calibration samples with answers"):
        prepare_checkpoint(RotateStep(seeds=2), checkpoint, tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()
