"""Tuning the rounding of blocks: alone, and inside a quantization."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from blockwise_jobs import DECODER, GPTQ, PowerCutError, cut_after, finish, job, source_of
from tiny_models import prompts, small_config, small_model
from torch import Tensor

from vlpress.model.config import ModelConfig
from vlpress.model.loading import load_model
from vlpress.quant.driver.pipeline import quantize_, save_quantized
from vlpress.quant.methods.affine import QuantizedWeight
from vlpress.quant.methods.rtn import rtn_by_rows
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.recover import Recover
from vlpress.quant.recipe.scheme import QuantScheme
from vlpress.quant.recover.blocks.rounded_linear import RoundedLinear
from vlpress.quant.recover.blocks.tuning import (
    BlockTuner,
    TokenWeights,
    Tuned,
    divide_samples,
)
from vlpress.quant.targets import compressed_linears

STEP: dict[str, Any] = GPTQ | {"bits": 2, "targets": DECODER}
TABLE: dict[str, Any] = {"params": "rounding", "steps": 4, "batch": 2, "lr": 0.05}


def task() -> tuple[Tensor, list[Tensor]]:
    """Make a weight, and inputs of 24 samples with a few strong directions."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 64, generator=generator)
    mixing = torch.randn(6, 64, generator=generator)
    return weight, [torch.randn(20, 6, generator=generator) @ mixing for _ in range(24)]


def tune(weights: TokenWeights = lambda sample: None, **more: Any) -> tuple[Tuned, RoundedLinear]:
    """Tune one rounded layer."""
    weight, inputs = task()
    layer = RoundedLinear(rtn_by_rows(weight, QuantScheme(2, 32)), weight, None)
    options = Recover(params=("rounding",), **{"steps": 60, "lr": 0.05, "batch": 8, **more})
    tuner = BlockTuner(
        {"layer": layer},
        range(24),
        run=lambda i: layer(inputs[i]),
        target=lambda i: inputs[i] @ weight.t(),
        weights=weights,
        options=options,
        seed=0,
    )
    return tuner.tune(), layer


@pytest.mark.parametrize("freeze", [None, (0.5, 0.75, 1.0)])
def test_the_held_out_loss_goes_down(freeze: tuple[float, ...] | None) -> None:
    tuned, layer = tune(freeze=freeze)
    assert tuned.best < 0.8 * tuned.start and tuned.step and 0 < tuned.changed < 1
    again, other = tune(freeze=freeze)
    assert again == tuned and other.quantized().equals(layer.quantized())


def test_losses_are_those_of_the_weighted_tokens() -> None:
    half = torch.cat([torch.ones(10), torch.zeros(10)])
    tuned, layer = tune(lambda sample: half)
    weight, inputs = task()

    def loss(quantized: QuantizedWeight) -> float:
        errors = [(x[:10] @ (quantized.dequantize() - weight).t()).square().sum() for x in inputs]
        sizes = [(x[:10] @ weight.t()).square().sum() for x in inputs]
        return fmean(float(errors[i] / sizes[i]) for i in divide_samples(range(24))[1])

    assert tuned.start == pytest.approx(loss(layer.solved), rel=1e-4)
    assert tuned.best == pytest.approx(loss(layer.quantized()), rel=1e-4)
    assert tuned.best < 0.8 * tuned.start


def test_samples_without_weight_change_nothing() -> None:
    tuned, layer = tune(lambda sample: torch.zeros(20))
    assert tuned.start == tuned.best == 0 and layer.quantized().equals(layer.solved)


def test_tuning_that_harms_leaves_the_solution() -> None:
    tuned, layer = tune(lr=1e15, steps=10)
    assert tuned.step == 0 and tuned.best == tuned.start and tuned.changed == 0
    assert layer.quantized().equals(layer.solved)


@pytest.mark.parametrize("method", ["gptaq", pytest.param("gptq", marks=pytest.mark.slow)])
def test_blocks_are_tuned_and_resumed_to_the_same_bytes(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [STEP | {"method": method}]
    source = source_of(tmp_path)
    samples = prompts(ModelConfig.from_folder(source))
    streaming = job(source, steps, samples, recover=TABLE)
    with monkeypatch.context() as patch, pytest.raises(PowerCutError):
        cut_after(12, patch)
        finish(streaming, tmp_path / "work", tmp_path / "never")
    written = finish(streaming, tmp_path / "work", tmp_path / "out")
    model = load_model(source, device="cpu")
    report = quantize_(model, streaming.recipe, samples)
    save_quantized(model, report, source, tmp_path / "other")
    assert written == {p.name: p.read_bytes() for p in (tmp_path / "other").iterdir()}
    blocks = report.to_dict()["recover"]["blocks"]
    assert [block["block"] for block in blocks] == ["model.layers.0", "model.layers.1"]
    assert all(block["best"] <= block["start"] and block["layers"] == 7 for block in blocks)


def test_blocks_are_tuned_with_the_token_weights_of_the_calibration() -> None:
    starts: list[float] = []
    for weights in ("uniform", {"image": 0.1}):
        model = small_model(small_config())
        step = {"method": "rtn", "bits": 2, "group_size": 32, "targets": DECODER}
        table: dict[str, Any] = {"step": [step]}
        table |= {"recover": TABLE, "calibration": {"token_weights": weights}}
        report = quantize_(model, Recipe.from_dict(table), prompts(model.config))
        starts.append(report.to_dict()["recover"]["blocks"][0]["start"])
    # Plain rounding takes no weights: the solutions are the same, and only the losses differ.
    assert starts[0] != pytest.approx(starts[1], rel=1e-3)


def test_a_recipe_without_integers_has_nothing_to_tune() -> None:
    model = small_model(small_config())
    table = {"step": [{"method": "rtn", "grid": "mxfp4"}], "recover": TABLE}
    with pytest.raises(ValueError, match="params rounding finds no layer of integers"):
        quantize_(model, Recipe.from_dict(table), prompts(model.config))


def test_parameters_of_the_whole_model_are_not_trained_in_memory() -> None:
    model = small_model(small_config())
    table = {"step": [STEP], "recover": {"params": "scales"}}
    with pytest.raises(ValueError, match="call recover_, or use vlpress quantize"):
        quantize_(model, Recipe.from_dict(table), prompts(model.config))
    assert not compressed_linears(model)
