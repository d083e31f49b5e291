"""Methods, kinds of weights and formats that are defined outside of vlpress (`toy_*.py`)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from blockwise_jobs import finish, job, source_of
from tiny_models import prompts, small_config, small_model
from toy_format import Plain
from toy_method import WeightedStep
from toy_weight import SignScheme, SignStep

import vlpress
from vlpress.model.config import ModelConfig
from vlpress.quant.api import inspect_checkpoint
from vlpress.quant.checkpoint.export import export
from vlpress.quant.checkpoint.formats.table import FORMATS
from vlpress.quant.checkpoint.loading import load_quantized
from vlpress.quant.checkpoint.saving import check_format
from vlpress.quant.driver.pipeline import quantize_, save_quantized
from vlpress.quant.plan.plan import make_plan
from vlpress.quant.plan.time_estimate import Probe, estimate_time
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.scheme import QuantScheme
from vlpress.quant.steps.table import METHODS
from vlpress.quant.targets import compressed_layers

TOY: dict[str, Any] = {"method": "weighted", "bits": 4, "group_size": 32}
SIGNS: dict[str, Any] = {"method": "sign", "targets": ["model.layers.*.down_proj"]}
BOTH = [SIGNS, TOY | {"ignore": ["model.layers.*.down_proj"]}]


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "weighted", WeightedStep)
    monkeypatch.setitem(METHODS, "sign", SignStep)
    monkeypatch.setitem(FORMATS, "plain", Plain())


def toy_recipe(**options: object) -> Recipe:
    return Recipe.from_dict({"name": "toy", "step": [TOY | options]})


def test_recipes_know_its_options() -> None:
    recipe = toy_recipe(power=0.5)
    assert recipe.steps == (WeightedStep(QuantScheme(4, 32), power=0.5),)
    assert recipe.needs_calibration
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    with pytest.raises(ValueError, match=r"power is -1; allowed: a number, at least 0"):
        toy_recipe(power=-1)
    with pytest.raises(ValueError, match=r"damp_percent is 0.1 with method weighted; .*gptq"):
        toy_recipe(damp_percent=0.1)
    with pytest.raises(ValueError, match=r"power is 2 with method gptq; allowed: .*weighted only"):
        toy_recipe(method="gptq", power=2)


def test_estimates_ask_the_method() -> None:
    plan = make_plan(ModelConfig.from_dict(small_config()), toy_recipe())
    searching = Probe(mac=0, mac32=0, hessian=0, column=0, solve_mac=0, search=1)
    assert estimate_time(plan, searching)[0] == sum(row.spec.weights for row in plan.quantized)
    assert {row.fate for row in plan.quantized} == {"weighted int4 g32 sym"}


def test_its_statistics_reach_the_solver() -> None:
    model = small_model()
    report = quantize_(model, toy_recipe(), prompts(model.config))
    plain = quantize_(small_model(), toy_recipe(power=0), prompts(model.config))
    data = report.to_dict()["layers"][0]
    assert data["method"] == "weighted" and data["tokens"] > 0 and data["energy"] > 0
    errors = [sum(layer.error or 0 for layer in r.layers) for r in (report, plain)]
    assert 0 < errors[0] < errors[1]  # the channels with more energy are rounded better


def test_formats_refuse_the_kinds_that_they_do_not_hold() -> None:
    recipe = Recipe.from_dict({"step": BOTH})
    assert recipe.steps[0] == SignStep(SignScheme(), targets=("model.layers.*.down_proj",))
    plan = make_plan(ModelConfig.from_dict(small_config()), recipe, format="plain")
    check_format(plan, "plain")
    for name in ("gptq", "awq", "compressed-tensors", "auto"):
        with pytest.raises(ValueError, match=r"down_proj and 1 more layer are of the kind sign"):
            check_format(plan, name)
    with pytest.raises(ValueError, match=r"bits is 4; allowed: 1"):
        Recipe.from_dict({"step": [SIGNS | {"bits": 4}]})
    smoothed = Recipe.from_dict({"step": [{"method": "smoothquant", "alpha": "search"}, *BOTH]})
    with pytest.raises(ValueError, match=r"smoothquant targets .*down_proj, .* sign g32; .*ignore"):
        make_plan(ModelConfig.from_dict(small_config()), smoothed)


@pytest.mark.usefixtures("reference_kernel")
def test_a_checkpoint_of_two_kinds_is_written_loaded_and_inspected(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    samples = prompts(ModelConfig.from_folder(source))
    made = job(source, BOTH, samples, format="plain")
    files = finish(made, tmp_path / "work", tmp_path / "out")
    record = json.loads(files["vlpress.json"])
    assert {"mean_scale"} < set(record["layers"][6]) and {"energy"} < set(record["layers"][0])
    loaded = load_quantized(tmp_path / "out", device="cpu")
    kinds = {name: layer.scheme.kind for name, layer in compressed_layers(loaded).items()}
    assert kinds["model.layers.0.mlp.down_proj"] == "sign"
    assert kinds["model.layers.0.mlp.up_proj"] == "integer"
    model = vlpress.load_model(source, device="cpu")
    report = quantize_(model, made.recipe, samples, format="plain")
    save_quantized(model, report, source, tmp_path / "again", format="plain")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == files["model.safetensors"]
    with torch.no_grad():
        assert torch.equal(torch.cat(model(samples)), torch.cat(loaded(samples)))
    layers = {layer["name"]: layer for layer in inspect_checkpoint(tmp_path / "out")["layers"]}
    assert layers["model.layers.1.mlp.down_proj"]["scheme"] == "sign g32"
    export(tmp_path / "out", tmp_path / "copy", "plain")
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == files["model.safetensors"]
    with pytest.raises(ValueError, match="of the kind sign; gptq holds integer"):
        export(tmp_path / "out", tmp_path / "gptq", "gptq")


@pytest.mark.slow
def test_the_verbs_of_the_api_take_them(tmp_path: Path) -> None:
    steps = (
        "name = 'toys'\n[[step]]\nmethod = 'sign'\ntargets = ['model.layers.0.mlp.down_proj']\n"
        "[[step]]\nmethod = 'weighted'\nbits = 8\ngroup_size = 64\npower = 0.5\n"
        "ignore = ['model.layers.0.mlp.down_proj']\n"
    )
    (tmp_path / "toys.toml").write_text(steps)
    recipe = str(tmp_path / "toys.toml")
    made = vlpress.quantize(
        "tiny", tmp_path / "out", recipe=recipe, calib_samples=2, format="plain", device="cpu"
    )
    assert made["format"] == "plain" and made["recipe"]["name"] == "toys"
    vlpress.export(tmp_path / "out", tmp_path / "copy", format="plain")
    scores = [
        vlpress.evaluate(
            folder, folder.with_suffix(".eval"), bench=["builtin-ocrbench"], limit=4, device="cpu"
        )
        for folder in (tmp_path / "out", tmp_path / "copy")
    ]
    results = [score["benchmarks"]["builtin-ocrbench"] for score in scores]
    assert results[0] == results[1] and results[0]["n"] == 4
