"""Weights of image tokens: known counts, and gradients checked against a plain backward pass."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import prompt, prompts, small_config, small_model

from vlpress.calib.gradients import visual_tokens
from vlpress.calib.token_weights import (
    FixedWeights,
    ModalityTokenWeights,
    balanced_image_weight,
    find_token_weights,
    gradient_image_weights,
)


def test_balanced_gives_both_kinds_the_same_total() -> None:
    model = small_model()
    given = prompts(model.config)
    weight = balanced_image_weight(given, model.config)
    visual = torch.cat([visual_tokens(p, model.config) for p in given])
    assert 0 < int(visual.sum()) < len(visual)
    assert weight * int(visual.sum()) == pytest.approx(int((~visual).sum()))


def test_balanced_without_pictures_is_one() -> None:
    model = small_model()
    assert balanced_image_weight([prompt(model.config, [], 8, 1)], model.config) == 1.0


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_gradient_weights_are_those_of_a_plain_backward_pass(family: str) -> None:
    model = small_model(small_config(family)).requires_grad_(True)
    given = prompt(model.config, [(1, 4, 8), (1, 8, 4)], 12, 3)
    weights = gradient_image_weights(model, [given])

    outputs: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda module, args, output: outputs.append(output))
        for layer in model.model.layers
    ]
    with torch.enable_grad():
        logits = model([given])[0]
    for hook in hooks:
        hook.remove()
    visual = visual_tokens(given, model.config)
    first = int(visual.nonzero().max()) + 1
    loss = F.cross_entropy(logits[first:-1], given.input_ids[first + 1 :], reduction="sum")
    gradients = torch.autograd.grad(loss, outputs)
    for (block, weight), gradient in list(zip(weights.items(), gradients, strict=True))[:-1]:
        energy = gradient[0].square().mean(dim=-1)
        assert weight == pytest.approx(float(energy[visual].mean() / energy[~visual].mean()), 1e-4)
        assert block in dict(model.named_modules())
    *_, before, last = weights.values()
    assert last == before > 0


def test_gradient_weights_leave_the_model_as_it_was() -> None:
    model = small_model().requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradient_image_weights(model, prompts(model.config))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_gradient_weights_need_a_picture_with_text_behind_it() -> None:
    model = small_model()
    with pytest.raises(ValueError, match="no calibration sample has an image followed by text"):
        gradient_image_weights(model, [prompt(model.config, [], 8, 1)])


def weights_at(block: str, wanted: str | FixedWeights) -> list[torch.Tensor | None]:
    model = small_model(small_config(tied=False))
    given = prompts(model.config)
    found = find_token_weights(wanted, model, given)
    return [found(block, sample) for sample in given]


BLOCKS = ["model.layers.0", "model.layers.1", "lm_head"]


@pytest.mark.parametrize("block", BLOCKS)
def test_numbers_go_to_image_video_and_all_other_tokens(block: str) -> None:
    given = prompts(small_model().config)
    for sample, weights in zip(given, weights_at(block, FixedWeights(0.25, 2.0)), strict=True):
        assert weights is not None
        places = torch.tensor([int(i) in (90, 91) for i in sample.input_ids])
        assert int(places.sum()) == sum(len(v.patches) // 4 for v in sample.visuals)
        assert weights.tolist() == torch.where(places, 0.25, 2.0).tolist()
        # One weight for each token and nothing else: answers count as text, nothing is padded.
        assert float(weights.sum()) == 0.25 * int(places.sum()) + 2.0 * int((~places).sum())


@pytest.mark.parametrize("block", BLOCKS)
def test_balanced_sums_are_equal(block: str) -> None:
    image = text = 0.0
    given = prompts(small_model().config)
    for sample, weights in zip(given, weights_at(block, "balanced"), strict=True):
        assert weights is not None
        visual = (sample.input_ids == 90) | (sample.input_ids == 91)
        image, text = image + float(weights[visual].sum()), text + float(weights[~visual].sum())
        assert set(weights[~visual].tolist()) == {1.0}
    assert image == pytest.approx(text)


def test_gradient_weights_differ_from_block_to_block() -> None:
    model = small_model(small_config(tied=False, num_hidden_layers=3))
    given = prompts(model.config)
    found = find_token_weights("gradient", model, given)
    assert isinstance(found, ModalityTokenWeights)
    weights = gradient_image_weights(model, given)
    assert found.image == weights | {"lm_head": weights["model.layers.2"]}
    visual = visual_tokens(given[1], model.config)
    seen = [found(f"model.layers.{i}", given[1]) for i in range(3)]
    for tokens, weight in zip(seen, weights.values(), strict=True):
        assert tokens is not None
        assert torch.equal(tokens, torch.where(visual, weight, 1.0))
    assert len(set(weights.values())) == 2
    assert found.to_dict() == {"image": dict(found.image), "text": 1.0}


@pytest.mark.parametrize(
    ("wanted", "data"),
    [
        ("uniform", {"image": 1.0, "text": 1.0}),
        (FixedWeights(0, 3), {"image": 0, "text": 3}),
        (FixedWeights(0.5), {"image": 0.5, "text": 1.0}),
    ],
)
def test_plain_data(wanted: str | FixedWeights, data: dict[str, float]) -> None:
    assert find_token_weights(wanted, small_model(), []).to_dict() == data


def test_weights_that_are_alike_are_none() -> None:
    for wanted in ("uniform", FixedWeights(0.5, 0.5)):
        assert weights_at("model.layers.0", wanted) == [None] * 4
    for block in ("visual.blocks.0", "visual.merger"):  # pictures only
        assert weights_at(block, FixedWeights(0.5)) == [None] * 4


def test_unusable_weights() -> None:
    model = small_model()
    with pytest.raises(ValueError, match="token_weights is 'mean'; allowed are uniform, balanced"):
        find_token_weights("mean", model, [])
    with pytest.raises(ValueError, match="no calibration sample has an image followed by text"):
        find_token_weights("gradient", model, [prompt(model.config, [], 8, 1)])
    with pytest.raises(ValueError, match="all 0; give image or text a weight above 0"):
        FixedWeights(0, 0)
    with pytest.raises(ValueError, match=r"image is inf; allowed: a number"):
        FixedWeights(image=float("inf"))
