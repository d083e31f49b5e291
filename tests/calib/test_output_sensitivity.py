"""Sensitivities of layer outputs, against plain backward passes and the divergence they predict."""

from dataclasses import replace

import pytest
import torch
from tiny_models import EACH_FAMILY, prompt, prompts, small_config, small_model

from vlpress.calib.gradients import predicted_tokens
from vlpress.calib.output_sensitivity import fisher_vector, output_sensitivities
from vlpress.model.families import EMBEDDING, LinearSpec, family_of
from vlpress.model.processing.inputs import Prompt
from vlpress.model.qwen_vl import QwenVL


def targets(model: QwenVL) -> list[LinearSpec]:
    return family_of(model.config).targets(model.config)


def test_vectors_have_the_fisher_matrix_of_the_logits_as_covariance() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0])
    vectors = fisher_vector(logits.expand(50_000, 5), torch.Generator().manual_seed(0))
    p = logits.softmax(-1)
    expected = torch.diag(p) - p[:, None] * p
    torch.testing.assert_close(vectors.t() @ vectors / len(vectors), expected, atol=5e-3, rtol=0)
    torch.testing.assert_close(vectors.sum(-1), torch.zeros(len(vectors)), atol=1e-5, rtol=0)


def plain_squares(
    model: QwenVL, sample: Prompt, names: list[str], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Squared gradients `[tokens, outputs]` by layer, through parameters that need gradients."""
    outputs: dict[str, torch.Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: outputs.update({name: output})
        )
        for name in names
    ]
    count = predicted_tokens(sample, model.config)
    model.requires_grad_(True)
    with torch.enable_grad():
        logits = model([sample])[0][-count - 1 : -1]
        loss = (logits * fisher_vector(logits, generator)).sum()
        gradients = torch.autograd.grad(loss, list(outputs.values()))
    model.requires_grad_(False)
    for hook in hooks:
        hook.remove()
    return {
        name: gradient.flatten(0, -2).square()
        for name, gradient in zip(outputs, gradients, strict=True)
    }


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_sums_are_those_of_plain_backward_passes(family: str) -> None:
    model = small_model(small_config(family, tied=False))
    first = replace(prompt(model.config, [(1, 4, 8)], 12, 3), answer_tokens=4)
    samples = [first, prompt(model.config, [], 9, 2)]
    specs = [spec for spec in targets(model) if spec.expert is None]
    names = [spec.name for spec in specs]
    measured = output_sensitivities(model, samples, targets(model), seed=5)
    assert measured.predicted == 4 + 11
    generator = torch.Generator().manual_seed(5)
    in_tower = {spec.name for spec in specs if spec.part == "tower"}
    expected = [
        plain_squares(model, first, names, generator),
        plain_squares(model, samples[1], [n for n in names if n not in in_tower], generator),
    ]
    for spec in specs:
        of_layer = measured.layers[spec.name]
        both = [squares[spec.name] for squares in expected if spec.name in squares]
        total = torch.stack([squares.sum(0) for squares in both]).sum(0)
        torch.testing.assert_close(of_layer.outputs, total, rtol=1e-3, atol=1e-7)
        for sample, squares in enumerate(both):
            # The whole head ran here, and only the predicting positions have a gradient.
            assert of_layer.tokens[sample].shape == (len(squares),)
            energy = squares.sum(1)
            torch.testing.assert_close(of_layer.tokens[sample], energy, rtol=1e-3, atol=1e-7)
        assert float(total.sum()) > 0, spec.name


def test_experts_have_the_tokens_that_are_routed_to_them() -> None:
    model = small_model(small_config("qwen3_vl_moe", tied=False))
    sample = prompt(model.config, [(1, 4, 4)], 12, 2)
    measured = output_sensitivities(model, [sample], targets(model))
    specs = [s for s in targets(model) if s.name.startswith("model.layers.0.mlp.experts.")]
    downs = [s for s in specs if s.name.endswith("down_proj")]
    reached = torch.stack(
        [measured.layers[s.name].tokens.get(0, torch.zeros(len(sample))) > 0 for s in downs]
    )
    # Every token that some later prediction depends on is routed to two experts.
    assert set(reached.sum(0).tolist()) <= {0, 2} and int(reached.sum()) > 0


def test_the_model_is_left_unchanged() -> None:
    model = small_model(small_config(tied=False)).requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    done: list[tuple[int, int, str]] = []
    samples = prompts(model.config)
    output_sensitivities(
        model, samples, targets(model), on_progress=lambda *call: done.append(call)
    )
    assert done == [(number, 4, "") for number in (1, 2, 3, 4)]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_draws_depend_on_the_seed_alone() -> None:
    model = small_model(small_config(tied=False))
    samples = prompts(model.config)[:2]
    first, again, other = (
        output_sensitivities(model, samples, targets(model), seed=seed).layers[EMBEDDING].outputs
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_no_token_to_predict_is_an_error() -> None:
    model = small_model(small_config(tied=False))
    text = prompt(model.config, [], 8, 1)
    single = Prompt(text.input_ids[:1], text.position_ids[:, :1])
    with pytest.raises(ValueError, match="token to predict"):
        output_sensitivities(model, [single], targets(model))
