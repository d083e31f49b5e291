"""The gated delta rule: its definition, and chunks of any length against it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlpress.model.gated_delta import chunked_delta_rule, recurrent_delta_rule

Inputs = tuple[torch.Tensor, ...]


def inputs(tokens: int, seed: int = 0, *, batch: int = 2, keys: int = 2, values: int = 3) -> Inputs:
    """q, k, v, g, beta, state; decays from none at all to almost everything."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    q, k = (torch.nn.functional.normalize(normal(batch, keys, tokens, 8), dim=-1) for _ in "qk")
    v = normal(batch, keys, values, tokens, 5)
    g = -torch.exp(3 * normal(batch, keys, values, tokens) - 2)
    beta = torch.sigmoid(2 * normal(batch, keys, values, tokens))
    return q, k, v, g, beta, normal(batch, keys, values, 8, 5)


def test_one_token_by_hand() -> None:
    q = torch.tensor([[[[0.5, 2.0]]]])
    k = torch.tensor([[[[0.6, 0.8]]]])
    v = torch.tensor([[[[[3.0]]]]])
    g, beta = torch.tensor([[[[-0.6931472]]]]), torch.tensor([[[[0.5]]]])
    state = torch.tensor([[[[[2.0], [4.0]]]]])
    out, after = recurrent_delta_rule(q, k, v, g, beta, state)
    # Decayed to (1, 2); predicted 0.6 + 1.6 = 2.2; half of the missing 0.8 is written along k.
    torch.testing.assert_close(after.flatten(), torch.tensor([1.24, 2.32]))
    torch.testing.assert_close(out.flatten(), torch.tensor([0.5 * 1.24 + 2 * 2.32]))
    assert state.flatten().tolist() == [2.0, 4.0]


def test_a_full_update_makes_the_state_predict_the_value() -> None:
    q, k, v, g, beta, state = inputs(1)
    _, after = recurrent_delta_rule(q, k, v, g, torch.ones_like(beta), state)
    read = k[:, :, None] @ after
    torch.testing.assert_close(read, v, rtol=0, atol=1e-5)


@settings(max_examples=25)
@given(tokens=st.integers(1, 40), chunk=st.sampled_from([1, 2, 7, 16, 64]), seed=st.integers(0, 99))
def test_chunks_give_the_result_of_single_tokens(tokens: int, chunk: int, seed: int) -> None:
    given_inputs = inputs(tokens, seed)
    out, after = chunked_delta_rule(*given_inputs, chunk=chunk)
    expected, expected_after = recurrent_delta_rule(*given_inputs)
    assert out.shape == expected.shape
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after, expected_after, rtol=1e-4, atol=1e-4)


def test_a_sequence_in_two_calls_is_the_sequence() -> None:
    q, k, v, g, beta, state = inputs(100)
    whole, after = chunked_delta_rule(q, k, v, g, beta, state)

    def run(tokens: slice, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        query, key, value = (x[..., tokens, :] for x in (q, k, v))
        return chunked_delta_rule(query, key, value, g[..., tokens], beta[..., tokens], before)

    for cut in (1, 64, 77):
        first, between = run(slice(cut), state)
        second, last = run(slice(cut, None), between)
        torch.testing.assert_close(torch.cat([first, second], -2), whole, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(last, after, rtol=1e-4, atol=1e-4)


def test_no_decay_and_no_update_leave_the_state() -> None:
    q, k, v, g, beta, state = inputs(70)
    _, after = chunked_delta_rule(q, k, v, torch.zeros_like(g), torch.zeros_like(beta), state)
    assert torch.equal(after, state)


def test_long_decays_do_not_overflow() -> None:
    q, k, v, g, beta, state = inputs(64)
    out, after = chunked_delta_rule(q, k, v, 1000 * g, beta, state)
    assert bool(out.isfinite().all()) and bool(after.isfinite().all())
    expected, _ = recurrent_delta_rule(q, k, v, 1000 * g, beta, state)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_single_tokens() -> None:
    given_inputs = [x.double().requires_grad_() for x in inputs(20, batch=1)]
    grads = []
    for rule in (chunked_delta_rule, recurrent_delta_rule):
        out, after = rule(*given_inputs)
        loss = out.square().sum() + after.square().sum()
        grads.append(torch.autograd.grad(loss, given_inputs))
    for chunked, recurrent in zip(*grads, strict=True):
        torch.testing.assert_close(chunked, recurrent)


@pytest.mark.parametrize("tokens", [1, 64, 65])
def test_parity_with_transformers(tokens: int) -> None:
    reference = pytest.importorskip("transformers.models.qwen3_5.modeling_qwen3_5")
    q, k, v, g, beta, state = inputs(tokens)
    theirs = [
        x.transpose(1, 2) for x in (q, k, v.flatten(1, 2), g.flatten(1, 2), beta.flatten(1, 2))
    ]
    out, after = reference.torch_chunk_gated_delta_rule(
        *theirs, initial_state=state.flatten(1, 2), output_final_state=True
    )
    ours, ours_after = chunked_delta_rule(q * 8**-0.5, k, v, g, beta, state)
    torch.testing.assert_close(ours.flatten(1, 2).transpose(1, 2), out, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours_after.flatten(1, 2), after, rtol=1e-4, atol=1e-4)
