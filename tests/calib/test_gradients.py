"""Gradients of the loss, against a plain backward pass and their definition."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_models import EACH_FAMILY, prompt, prompts, small_config, small_model

from vlpress.calib.gradients import (
    loss_gradients,
    predicted_tokens,
    token_sensitivities,
    visual_tokens,
)
from vlpress.calib.token_weights import find_token_weights
from vlpress.model.processing.inputs import Prompt
from vlpress.model.qwen_vl import QwenVL


def answered(model: QwenVL, tokens: int) -> Prompt:
    return replace(prompt(model.config, [(1, 4, 8)], 12, 3), answer_tokens=tokens)


def plain_gradients(model: QwenVL, sample: Prompt, count: int) -> list[torch.Tensor]:
    outputs: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda module, args, output: outputs.append(output))
        for layer in model.model.layers
    ]
    model.requires_grad_(True)
    with torch.enable_grad():
        logits = model([sample])[0]
    for hook in hooks:
        hook.remove()
    loss = F.cross_entropy(logits[-count - 1 : -1], sample.input_ids[-count:], reduction="sum")
    return [gradient[0] for gradient in torch.autograd.grad(loss, outputs)]


@pytest.mark.parametrize("tokens", [1, 3])
def test_the_loss_is_of_the_answer(tokens: int) -> None:
    model = small_model()
    sample = answered(model, tokens)
    assert predicted_tokens(sample, model.config) == tokens
    expected = plain_gradients(model, sample, tokens)
    for actual, reference in zip(loss_gradients(model, sample), expected, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-4, atol=1e-7)


def test_without_an_answer_all_tokens_after_the_last_image_are_predicted() -> None:
    model = small_model()
    sample = answered(model, 0)
    last = int(visual_tokens(sample, model.config).nonzero().max())
    # The first token after the image is predicted by an image token, which is excluded.
    assert predicted_tokens(sample, model.config) == len(sample) - last - 2
    text = prompt(model.config, [], 8, 1)
    assert predicted_tokens(text, model.config) == len(text) - 1


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_token_weights_are_norms_of_gradients(family: str) -> None:
    model = small_model(small_config(family))
    first, second = answered(model, 4), replace(prompt(model.config, [], 9, 2), answer_tokens=2)
    weights = token_sensitivities(model, [first, second], floor=0.25)
    norms = [
        [gradient.norm(dim=-1) for gradient in plain_gradients(model, sample, count)]
        for sample, count in ((first, 4), (second, 2))
    ]
    blocks = len(norms[0])
    for block in range(blocks - 1):
        both = torch.cat([norms[0][block], norms[1][block]])
        of_block = torch.cat([weights[first][block], weights[second][block]])
        expected = 0.25 + 0.75 * both / both.mean()
        torch.testing.assert_close(of_block, expected, rtol=1e-3, atol=1e-4)
        assert float(of_block.mean()) == pytest.approx(1.0, abs=1e-4)
    assert torch.equal(weights[first][-1], weights[first][-2])


def test_a_sample_without_tokens_to_predict_gets_the_floor() -> None:
    model = small_model()
    sample = answered(model, 4)
    unpredicted = prompt(model.config, [(1, 4, 8)], 12, 5)
    unpredicted = replace(unpredicted, input_ids=unpredicted.input_ids[:-1])
    length = int(visual_tokens(unpredicted, model.config).nonzero().max()) + 1
    unpredicted = Prompt(
        unpredicted.input_ids[:length], unpredicted.position_ids[:, :length], unpredicted.visuals
    )
    assert predicted_tokens(unpredicted, model.config) == 0
    weights = token_sensitivities(model, [sample, unpredicted], floor=0.2)
    assert all(torch.equal(w, torch.full((length,), 0.2)) for w in weights[unpredicted])


def test_no_token_to_predict_is_an_error() -> None:
    model = small_model()
    text = prompt(model.config, [], 8, 1)
    single = Prompt(text.input_ids[:1], text.position_ids[:, :1])
    with pytest.raises(ValueError, match="token to predict"):
        token_sensitivities(model, [single])


def test_token_gradient_weights_by_block_and_sample() -> None:
    model = small_model(small_config(tied=False))
    samples = prompts(model.config)
    expected = token_sensitivities(model, samples)
    token_weights = find_token_weights("token-gradient", model, samples)
    for sample in samples:
        for number, weights in enumerate(expected[sample]):
            weight = token_weights(f"model.layers.{number}", sample)
            assert weight is not None and torch.equal(weight, weights)
        head = token_weights("lm_head", sample)
        assert head is not None and torch.equal(head, expected[sample][-1])
        assert token_weights("visual.blocks.0", sample) is None
    data = token_weights.to_dict()
    assert set(data) == {"image", "text"}
    mask = torch.cat([visual_tokens(sample, model.config) for sample in samples])
    weights = torch.cat([expected[sample][0] for sample in samples])
    assert data["image"]["model.layers.0"] == pytest.approx(float(weights[mask].mean()))
    assert data["text"]["model.layers.0"] == pytest.approx(float(weights[~mask].mean()))
