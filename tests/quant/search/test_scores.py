"""Predicted losses, against their definition and the divergence of changed models."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from tiny_models import EACH_FAMILY, make_random_model, make_tiny_config, prompt, prompts

from vlpress.calib.disk_activation_store import DiskActivationStore
from vlpress.calib.output_sensitivity import output_sensitivities
from vlpress.eval.search.check import DivergenceOf
from vlpress.model.families import EMBEDDING, LinearSpec, family_of
from vlpress.model.processing.inputs import Prompt
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.recipe.scheme import QuantScheme, Scheme
from vlpress.quant.search.scores import Layer, Scores, output_loss, score_layers
from vlpress.quant.search.space import Masks, masks_by
from vlpress.quant.targets import weight_of

INT4, INT8 = QuantScheme(4, 32), QuantScheme(8, 32)


def targets(model: QwenVL) -> list[LinearSpec]:
    return family_of(model.config).targets(model.config)


def score(
    model: QwenVL,
    samples: list[Prompt],
    schemes: dict[str, list[Scheme]],
    folder: Path,
    *,
    errors: str = "rtn",
    keep: list[Layer] | None = None,
    masks: Masks = (None,),
) -> Scores:
    roundings = {
        name: [(scheme, mask) for scheme in of_layer for mask in masks]
        for name, of_layer in schemes.items()
    }
    sensitivities = output_sensitivities(model, samples, targets(model))
    with closing(DiskActivationStore(folder / "states", model.device)) as store:
        return score_layers(
            model,
            samples,
            roundings,
            targets(model),
            sensitivities,
            store,
            errors=errors,
            keep=keep or [],
        )


def test_the_loss_is_the_quadratic_form() -> None:
    error = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    hessian = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    # Rows have energies 2 + 4 + 12 and 3.
    assert output_loss(error, torch.tensor([0.5, 4.0]), hessian, 10) == pytest.approx(
        0.5 * (0.5 * 18 + 4 * 3) / 10
    )


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_every_layer_of_every_family_is_scored(family: str, tmp_path: Path) -> None:
    model = make_random_model(
        config=make_tiny_config(family, tied=False, text={"num_hidden_layers": 3})
    )
    schemes: dict[str, list[Scheme]] = {
        spec.name: [INT4, INT8]
        for spec in targets(model)
        if spec.in_features % 32 == 0 and spec.out_features % 32 == 0
    }
    scores = score(model, prompts(model.config), schemes, tmp_path)
    assert set(scores.losses) == {(name, s, None) for name in schemes for s in (INT4, INT8)}
    for name in schemes:
        coarse, fine = scores.losses[name, INT4, None], scores.losses[name, INT8, None]
        # The rounding error is 17 times smaller, and its square 289 times.
        assert coarse > 20 * fine > 0 or (".experts." in name and coarse >= fine >= 0), name


@pytest.mark.parametrize("name", [EMBEDDING, "lm_head", "model.layers.1.mlp.down_proj"])
def test_losses_predict_the_divergence(name: str, tmp_path: Path) -> None:
    """Of small rounding errors, in the mean over random weights and vectors."""
    ratios = []
    for seed in range(3):
        model = make_random_model(config=make_tiny_config(tied=False), seed=seed)
        samples = [
            replace(prompt(model.config, [(1, 4, 4)], 12, 7 * seed + n), answer_tokens=6)
            for n in range(4)
        ]
        scores = score(model, samples, {name: [INT8]}, tmp_path / str(seed))
        divergence = DivergenceOf(model, samples)
        module = model.get_submodule(name)
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        grid = INT8.fit_for_rounding(weight)
        rounded = grid.compressed(grid.nearest(weight)).dequantize()
        module.weight = torch.nn.Parameter(rounded, requires_grad=False)
        ratios.append(divergence.measure(changes_tower=False) / scores.losses[name, INT8, None])
    assert 0.5 < fmean(ratios) < 2.0


def test_scoring_leaves_the_model_unchanged(tmp_path: Path) -> None:
    model = make_random_model(config=make_tiny_config(tied=False))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    name = "model.layers.0.self_attn.q_proj"
    scores = score(
        model,
        prompts(model.config),
        {name: [INT4]},
        tmp_path,
        errors="gptq",
        keep=[(name, INT4, None)],
    )
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    spec = next(spec for spec in targets(model) if spec.name == name)
    error = scores.weights[name, INT4, None].dequantize() - weight_of(model, spec)
    assert 0 < float(error.abs().max()) < 1
    assert scores.loss([spec, spec], [INT4, None]) == scores.losses[name, INT4, None]


@pytest.mark.parametrize("errors", ["rtn", "gptq"])
def test_more_zeros_lose_more(errors: str, tmp_path: Path) -> None:
    model = make_random_model(config=make_tiny_config(tied=False))
    name = "model.layers.0.mlp.down_proj"
    masks = masks_by("sparsegpt")
    layer = (name, INT8, masks[5])
    scores = score(
        model,
        prompts(model.config),
        {name: [INT8]},
        tmp_path,
        errors=errors,
        masks=masks,
        keep=[layer],
    )
    losses = [scores.losses[name, INT8, mask] for mask in masks]
    assert losses == sorted(losses) and losses[0] * 10 < losses[1]
    assert masks[5] is not None and masks[5].keep == 0.5
    weight = scores.weights[layer].dequantize()
    assert float((weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
