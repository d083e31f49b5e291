"""Token weights: exact counts, and gradients compared with a plain backward pass."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import EACH_FAMILY, prompt, prompts, small_config, small_model

from vlpress.calib.fixed_weights import FixedWeights
from vlpress.calib.gradients import visual_tokens
from vlpress.calib.token_weights import (
    ModalityTokenWeights,
    balanced_image_weight,
    find_token_weights,
    gradient_image_weights,
)


def test_balanced_gives_both_kinds_the_same_total() -> None:
    model = small_model()
    samples = prompts(model.config)
    weight = balanced_image_weight(samples, model.config)
    visual = torch.cat([visual_tokens(p, model.config) for p in samples])
    assert 0 < int(visual.sum()) < len(visual)
    assert weight * int(visual.sum()) == pytest.approx(int((~visual).sum()))


def test_balanced_without_images_is_one() -> None:
    model = small_model()
    assert balanced_image_weight([prompt(model.config, [], 8, 1)], model.config) == 1.0


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_gradient_weights_are_those_of_a_plain_backward_pass(family: str) -> None:
    model = small_model(small_config(family)).requires_grad_(True)
    sample = prompt(model.config, [(1, 4, 8), (1, 8, 4)], 12, 3)
    weights = gradient_image_weights(model, [sample])

    outputs: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda module, args, output: outputs.append(output))
        for layer in model.model.layers
    ]
    with torch.enable_grad():
        logits = model([sample])[0]
    for hook in hooks:
        hook.remove()
    visual = visual_tokens(sample, model.config)
    first = int(visual.nonzero().max()) + 1
    loss = F.cross_entropy(logits[first:-1], sample.input_ids[first + 1 :], reduction="sum")
    gradients = torch.autograd.grad(loss, outputs)
    for (block, weight), gradient in list(zip(weights.items(), gradients, strict=True))[:-1]:
        energy = gradient[0].square().mean(dim=-1)
        assert weight == pytest.approx(float(energy[visual].mean() / energy[~visual].mean()), 1e-4)
        assert block in dict(model.named_modules())
    *_, before, last = weights.values()
    assert last == before > 0


def test_gradient_weights_do_not_change_the_model() -> None:
    model = small_model().requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradient_image_weights(model, prompts(model.config))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_gradient_weights_need_an_image_followed_by_text() -> None:
    model = small_model()
    with pytest.raises(ValueError, match="image followed by text"):
        gradient_image_weights(model, [prompt(model.config, [], 8, 1)])


def weights_at(block: str, setting: str | FixedWeights) -> list[torch.Tensor | None]:
    model = small_model(small_config(tied=False))
    samples = prompts(model.config)
    token_weights = find_token_weights(setting, model, samples)
    return [token_weights(block, sample) for sample in samples]


BLOCKS = ["model.layers.0", "model.layers.1", "lm_head"]


@pytest.mark.parametrize("block", BLOCKS)
def test_fixed_weights_apply_to_visual_and_other_tokens(block: str) -> None:
    samples = prompts(small_model().config)
    for sample, weights in zip(samples, weights_at(block, FixedWeights(0.25, 2.0)), strict=True):
        assert weights is not None
        is_visual = torch.tensor([int(i) in (90, 91) for i in sample.input_ids])
        assert int(is_visual.sum()) == sum(len(v.patches) // 4 for v in sample.visuals)
        assert weights.tolist() == torch.where(is_visual, 0.25, 2.0).tolist()
        # Answers count as text, and there is no padding.
        assert float(weights.sum()) == 0.25 * int(is_visual.sum()) + 2.0 * int((~is_visual).sum())


@pytest.mark.parametrize("block", BLOCKS)
def test_balanced_sums_are_equal(block: str) -> None:
    image = text = 0.0
    samples = prompts(small_model().config)
    for sample, weights in zip(samples, weights_at(block, "balanced"), strict=True):
        assert weights is not None
        visual = (sample.input_ids == 90) | (sample.input_ids == 91)
        image, text = image + float(weights[visual].sum()), text + float(weights[~visual].sum())
        assert set(weights[~visual].tolist()) == {1.0}
    assert image == pytest.approx(text)


def test_gradient_weights_differ_from_block_to_block() -> None:
    model = small_model(small_config(tied=False, num_hidden_layers=3))
    samples = prompts(model.config)
    token_weights = find_token_weights("gradient", model, samples)
    assert isinstance(token_weights, ModalityTokenWeights)
    weights = gradient_image_weights(model, samples)
    assert token_weights.image == weights | {"lm_head": weights["model.layers.2"]}
    visual = visual_tokens(samples[1], model.config)
    by_block = [token_weights(f"model.layers.{i}", samples[1]) for i in range(3)]
    for tokens, weight in zip(by_block, weights.values(), strict=True):
        assert tokens is not None
        assert torch.equal(tokens, torch.where(visual, weight, 1.0))
    assert len(set(weights.values())) == 2
    assert token_weights.to_dict() == {"image": dict(token_weights.image), "text": 1.0}


@pytest.mark.parametrize(
    ("setting", "data"),
    [
        ("uniform", {"image": 1.0, "text": 1.0}),
        (FixedWeights(0, 3), {"image": 0, "text": 3}),
        (FixedWeights(0.5), {"image": 0.5, "text": 1.0}),
    ],
)
def test_json_values(setting: str | FixedWeights, data: dict[str, float]) -> None:
    assert find_token_weights(setting, small_model(), []).to_dict() == data


def test_equal_weights_are_none() -> None:
    for setting in ("uniform", FixedWeights(0.5, 0.5)):
        assert weights_at("model.layers.0", setting) == [None] * 4
    for block in ("visual.blocks.0", "visual.merger"):  # image tokens only
        assert weights_at(block, FixedWeights(0.5)) == [None] * 4


def test_unusable_weights() -> None:
    model = small_model()
    with pytest.raises(ValueError, match=r"'mean'.*uniform, balanced"):
        find_token_weights("mean", model, [])
    with pytest.raises(ValueError, match="image followed by text"):
        find_token_weights("gradient", model, [prompt(model.config, [], 8, 1)])
    with pytest.raises(ValueError, match="all 0"):
        FixedWeights(0, 0)
    with pytest.raises(ValueError, match=r"image is inf; allowed: a number"):
        FixedWeights(image=float("inf"))
