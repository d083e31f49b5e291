"""Methods that are defined outside of vlpress, see `toy_method.py`."""

from pathlib import Path

import pytest
import torch
from blockwise_jobs import finish, job, source_of
from tiny_models import prompts, small_config, small_model
from toy_method import WeightedStep

from vlpress.model.config import ModelConfig
from vlpress.quant.checkpoint.loading import load_quantized
from vlpress.quant.driver.pipeline import quantize_
from vlpress.quant.plan.plan import make_plan
from vlpress.quant.plan.time_estimate import Probe, estimate_time
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.scheme import QuantScheme
from vlpress.quant.steps.table import METHODS

TOY = {"method": "weighted", "bits": 4, "group_size": 32}


@pytest.fixture(autouse=True)
def toy_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "weighted", WeightedStep)


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


@pytest.mark.usefixtures("reference_kernel")
def test_a_checkpoint_is_written_and_loaded(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    samples = prompts(ModelConfig.from_folder(source))
    files = finish(job(source, [TOY], samples), tmp_path / "work", tmp_path / "out")
    assert b"energy" in files["vlpress.json"]
    loaded = load_quantized(tmp_path / "out", device="cpu")
    with torch.no_grad():
        assert all(bool(logits.isfinite().all()) for logits in loaded(samples))
