"""The compiled step of the gated delta rule against torch's."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_random_model, prompts

from vlpress.model.gated_delta import recurrent_delta_rule
from vlpress.model.generation import generate
from vlpress.quant.kernels import library
from vlpress.quant.kernels.delta_rule import CpuDeltaRule
from vlpress.quant.runtime.description import count_kernels
from vlpress.quant.runtime.kernel_selection import accelerate_linear_attention_


def rule(name: str) -> CpuDeltaRule:
    kernels = library.find_kernels(name)
    if isinstance(kernels, str):
        pytest.skip(kernels)
    return CpuDeltaRule(kernels)


def inputs(*sizes: int) -> list[torch.Tensor]:
    batch, keys, groups, width, value_width = sizes
    generator = torch.Generator().manual_seed(sum(sizes))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    q, k = (normal(batch, keys, 1, width) for _ in "qk")
    g = -normal(batch, keys, groups, 1).abs()
    beta = normal(batch, keys, groups, 1).sigmoid()
    v, state = normal(batch, keys, groups, 1, value_width), normal(*sizes)
    return [q, k, v, g, beta, state]


@pytest.mark.parametrize("name", library.NAMES)
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1, 1, 1), (2, 3, 1, 128, 128), (3, 2, 3, 16, 32), (1, 2, 2, 7, 100)]
)
def test_one_token(name: str, sizes: tuple[int, ...]) -> None:
    given = inputs(*sizes)
    expected, expected_state = recurrent_delta_rule(*given)
    out, state = rule(name)(*given)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5 * sizes[3])
    torch.testing.assert_close(state, expected_state, rtol=1e-4, atol=1e-5 * sizes[3])


def test_inputs_in_other_layouts_and_threads() -> None:
    q, k, v, g, beta, state = inputs(4, 8, 2, 64, 64)
    q = q.transpose(0, 1).contiguous().transpose(0, 1)
    expected, _ = recurrent_delta_rule(q, k, v, g, beta, state)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out, _ = rule("")(q, k, v, g, beta, state.clone())
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(before)


def test_gradients_and_float64_are_left_to_torch() -> None:
    wide = [each.double() for each in inputs(1, 1, 1, 4, 4)]
    kept = wide[-1].clone()
    out, _ = rule("")(*wide)
    assert out.dtype == torch.float64 and torch.equal(wide[-1], kept)
    needing = [each.requires_grad_() for each in inputs(1, 1, 1, 4, 4)]
    out, _ = rule("")(*needing)
    assert out.requires_grad


def test_answers_stay() -> None:
    model = make_random_model("qwen3_5")
    asked = [each for each in prompts(model.config) if not each.visuals]
    plain = generate(model, asked, max_new_tokens=12, stop_ids=(), return_logits=True)
    kernels = library.chosen_kernels()
    if isinstance(kernels, str):
        pytest.skip(kernels)
    assert count_kernels(model) == {}
    accelerate_linear_attention_(model)
    assert count_kernels(model) == {kernels.name: 2}  # of four layers
    faster = generate(model, asked, max_new_tokens=12, stop_ids=(), return_logits=True)
    for before, after in zip(plain, faster, strict=True):
        assert before.token_ids == after.token_ids
        assert before.logits is not None and after.logits is not None
        torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=1e-3)
