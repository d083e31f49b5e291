"""Recipes that drop visual tokens: calibration without them, the record, and loading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from blockwise_jobs import (
    BOTH,
    GPTQ,
    RTN,
    PowerCutError,
    contents,
    cut_after,
    finish,
    job,
    source_of,
)
from tiny_models import prompts

from vlpress.calib.fixed_weights import KINDS
from vlpress.cli.console import inspect_table
from vlpress.model.config import ModelConfig
from vlpress.model.loading import load_model
from vlpress.model.token_reduction.divprune import DivPrune
from vlpress.model.token_reduction.duplicates import Duplicates
from vlpress.model.token_reduction.random_tokens import Random
from vlpress.quant import api
from vlpress.quant.checkpoint.export import export
from vlpress.quant.checkpoint.loading import load_quantized, open_model
from vlpress.quant.driver.pipeline import quantize_, save_quantized
from vlpress.quant.plan.plan import make_plan
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.runtime.description import describe_reduction, described_rule

RULE = {"method": "divprune", "keep": 0.5}
REDUCED: dict[str, Any] = {"vision_input": {"reduce": RULE}}
ROUNDED = [RTN | {"targets": ["model.layers.*"]}]


def recipe(steps: list[dict[str, Any]] = BOTH, **top: Any) -> Recipe:
    return Recipe.from_dict({"step": steps, **top})


def with_rule(rule: object) -> dict[str, Any]:
    return {"vision_input": {"reduce": rule}}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a checkpoint with a rule; its source is next to it."""
    folder = tmp_path_factory.mktemp("reduced")
    source = source_of(folder)
    samples = prompts(ModelConfig.from_folder(source))
    finish(job(source, BOTH, samples, **REDUCED), folder / "work", folder / "out")
    return folder / "out"


def test_recipes_spell_out_the_rule() -> None:
    plain, reduced = recipe(), recipe(**with_rule({"method": "duplicates"}))
    assert plain.vision_input.reduction is None and "vision_input" not in plain.to_dict()
    assert reduced.vision_input.reduction == Duplicates(threshold=0.98)
    assert reduced.to_dict()["vision_input"] == {
        "reduce": {"method": "duplicates", "threshold": 0.98}
    }
    assert Recipe.from_dict(reduced.to_dict()) == reduced


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"reduce": {"method": "tome"}}, r"vision_input.reduce.method is 'tome'; allowed: dupl"),
        ({"reduce": {"method": "random", "keep": 0}}, r"vision_input.reduce.keep is 0; allowed: a"),
        ({"reduce": "random"}, r"vision_input.reduce is 'random'; allowed: a table with the key"),
        (
            {"reduce": RULE, "reduction": RULE},
            r"vision_input: unknown key 'reduction'; allowed: max_pixels, reduce",
        ),
        ({}, r"vision_input has no key; allowed: reduce, max_pixels"),
        ([], r"vision_input is \[\]; allowed: a table"),
    ],
)
def test_bad_sections_are_refused_in_one_line(section: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^recipe: {message}") as error:
        recipe(vision_input=section)
    assert "\n" not in str(error.value)


def test_calibration_reads_the_kept_tokens_alone(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    samples = prompts(ModelConfig.from_folder(source))
    model, other = load_model(source, device="cpu"), load_model(source, device="cpu")
    other.reduction = DivPrune(keep=0.5)
    reduced, _ = other.reduce(samples)
    other.reduction = None
    report = quantize_(model, recipe(**REDUCED), samples)
    expected = quantize_(other, recipe(), reduced)
    assert model.reduction == DivPrune(keep=0.5) and other.reduction is None
    state, same = model.state_dict(), other.state_dict()
    assert all(torch.equal(state[name], same[name]) for name in same)
    assert report.calibration is not None and expected.calibration is not None
    assert report.calibration.fingerprint == expected.calibration.fingerprint
    kept, total = report.calibration.visual_tokens or (0, 0)
    assert total == sum(v.patches.shape[0] // 4 for each in samples for v in each.visuals)
    assert kept < total
    assert report.calibration.tokens == sum(map(len, samples)) - total + kept
    tokens = {layer.row.name: layer.tokens for layer in report.layers}
    assert tokens["model.layers.1.mlp.up_proj"] == report.calibration.tokens
    patches = sum(v.patches.shape[0] for each in samples for v in each.visuals)
    assert tokens["visual.blocks.0.attn.qkv"] == patches  # the tower reads whole images


def test_blockwise_and_in_memory_write_the_same(written: Path, tmp_path: Path) -> None:
    source = written.parent / "source"
    samples = prompts(ModelConfig.from_folder(source))
    model = load_model(source, device="cpu")
    report = quantize_(model, recipe(name="test", **REDUCED), samples)
    save_quantized(model, report, source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(written)
    plain = finish(job(source, BOTH, samples), tmp_path / "work", tmp_path / "plain")
    assert plain["model.safetensors"] != contents(written)["model.safetensors"]
    assert b"visual_tokens" not in plain["vlpress.json"]


@pytest.mark.parametrize("kind", [*KINDS, {"image": 0.0, "text": 1.0}], ids=str)
def test_token_weights_are_those_of_the_kept_tokens(tmp_path: Path, kind: Any) -> None:
    source = source_of(tmp_path)
    samples = prompts(ModelConfig.from_folder(source))
    steps = [GPTQ | {"targets": ["model.layers.*"]}]
    settings: dict[str, Any] = {"calibration": {"token_weights": kind}}
    model, other = load_model(source, device="cpu"), load_model(source, device="cpu")
    other.reduction = Random(keep=0.3)
    reduced, _ = other.reduce(samples)
    other.reduction = None
    rule = with_rule({"method": "random", "keep": 0.3})
    report = quantize_(model, recipe(steps, **settings, **rule), samples)
    expected = quantize_(other, recipe(steps, **settings), reduced)
    assert report.calibration is not None and expected.calibration is not None
    weights = report.calibration.token_weights.to_dict()
    assert weights == expected.calibration.token_weights.to_dict()
    same = other.state_dict()
    assert all(torch.equal(t, same[name]) for name, t in model.state_dict().items())


def test_resumed_run_ends_in_the_same_bytes(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cuts = written.parent / "source", 0
    samples = prompts(ModelConfig.from_folder(source))
    while not (tmp_path / "out").exists():
        with monkeypatch.context() as patch:
            cut_after(12 + cuts, patch)
            try:
                finish(job(source, BOTH, samples, **REDUCED), tmp_path / "work", tmp_path / "out")
            except PowerCutError:
                cuts += 1
    assert cuts > 0 and contents(tmp_path / "out") == contents(written)


def test_checkpoint_states_the_rule_and_loads_with_it(written: Path, tmp_path: Path) -> None:
    record = json.loads((written / "vlpress.json").read_text())
    assert record["visual_tokens"] == RULE
    assert record["calibration"]["visual_tokens"]["total"] == 4 + (6 + 1 + 8) + 12
    assert load_quantized(written, device="cpu").reduction == DivPrune(keep=0.5)
    opened = open_model(written, device="cpu")
    assert describe_reduction(opened) == RULE and described_rule(RULE) == "divprune:keep=0.5"
    assert open_model(written, device="cpu", reduce="none").reduction is None
    other = open_model(written, device="cpu", reduce="random:keep=0.1,seed=3")
    assert other.reduction == Random(keep=0.1, seed=3)
    assert open_model(written.parent / "source", device="cpu").reduction is None
    export(written, tmp_path / "copy", "compressed-tensors")
    assert load_quantized(tmp_path / "copy", device="cpu").reduction == DivPrune(keep=0.5)


def test_card_plan_and_inspect_say_who_applies_it(written: Path) -> None:
    line = "isual tokens: divprune:keep=0.5 (applied by vlpress only; vLLM ignores it for images)"
    assert f"- V{line}" in (written / "README.md").read_text()
    inspected = api.inspect_checkpoint(written)
    assert inspected["visual_tokens"] == RULE and f"v{line}" in inspect_table(inspected)
    plan = make_plan(ModelConfig.from_folder(written.parent / "source"), recipe(**REDUCED))
    assert plan.to_dict()["visual_tokens"] == RULE


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"method": "dart"}, r"visual_tokens.method is 'dart'; allowed: duplicates, divprune"),
        ({"method": "divprune", "keep": 2}, r"visual_tokens.keep is 2; allowed: a number above 0"),
        (["divprune"], r"visual_tokens is \['divprune'\]; allowed: a table"),
    ],
)
def test_damaged_records_are_refused(tmp_path: Path, rule: object, message: str) -> None:
    source = source_of(tmp_path)
    out = tmp_path / "out"
    finish(job(source, ROUNDED, []), tmp_path / "work", out)
    record = json.loads((out / "vlpress.json").read_text()) | {"visual_tokens": rule}
    (out / "vlpress.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"vlpress.json: {message}") as error:
        load_quantized(out, device="cpu")
    assert "\n" not in str(error.value)


def test_recipe_that_only_rounds_keeps_its_rule(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    finish(job(source, ROUNDED, [], **REDUCED), tmp_path / "work", tmp_path / "out")
    assert load_quantized(tmp_path / "out", device="cpu").reduction == DivPrune(keep=0.5)
