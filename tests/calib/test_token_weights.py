"""Weights of image tokens: known counts, and gradients checked against a plain backward pass."""

import pytest
import torch
import torch.nn.functional as F
from calib_models import prompt, prompts, random_model, raw_config

from vlpress.calib.token_weights import (
    balanced_image_weight,
    gradient_image_weights,
    visual_tokens,
)


def test_balanced_gives_both_kinds_the_same_total() -> None:
    model = random_model()
    given = prompts(model.config)
    weight = balanced_image_weight(given, model.config)
    visual = torch.cat([visual_tokens(p, model.config) for p in given])
    assert 0 < int(visual.sum()) < len(visual)
    assert weight * int(visual.sum()) == pytest.approx(int((~visual).sum()))


def test_balanced_without_pictures_is_one() -> None:
    model = random_model()
    assert balanced_image_weight([prompt(model.config, [], 8, 1)], model.config) == 1.0


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_gradient_weights_are_those_of_a_plain_backward_pass(family: str) -> None:
    model = random_model(raw_config(family)).requires_grad_(True)
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
    model = random_model().requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradient_image_weights(model, prompts(model.config))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_gradient_weights_need_a_picture_with_text_behind_it() -> None:
    model = random_model()
    with pytest.raises(ValueError, match="no calibration sample has a picture with text behind"):
        gradient_image_weights(model, [prompt(model.config, [], 8, 1)])
