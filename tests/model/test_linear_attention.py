"""Layers with linear attention: padding, caching and prefixes change no result."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_random_model, make_tiny_config, prompt, prompts

from vlpress.model.cache import KVCache, padded_causal_mask
from vlpress.model.generation import generate
from vlpress.model.linear_attention import GatedDeltaNet, GatedRMSNorm
from vlpress.model.prefix_sharing import split_prompts
from vlpress.model.qwen_vl import QwenVL


@pytest.fixture(scope="module")
def model() -> QwenVL:
    return make_random_model("qwen3_5")


def layer(model: QwenVL) -> GatedDeltaNet:
    found = model.model.layers[0].linear_attn
    assert isinstance(found, GatedDeltaNet)
    return found


def context(
    model: QwenVL,
    x: torch.Tensor,
    mask: torch.Tensor | None = None,
    cache: KVCache | None = None,
) -> torch.Tensor:
    no_angles = torch.zeros(1)  # positions play no part
    return layer(model).context(x, no_angles, no_angles, mask, cache)


def hidden(model: QwenVL, rows: int, tokens: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(rows * tokens)
    return torch.randn(rows, tokens, model.config.text.hidden_size, generator=random)


def test_layers_alternate(model: QwenVL) -> None:
    kinds = [each.linear_attn is not None for each in model.model.layers]
    assert kinds == [True, False, True, False]
    assert model.config.text.cached_layers == (1, 3)


@pytest.mark.parametrize("padding", [1, 2, 5])
def test_padding_before_the_first_token_changes_nothing(model: QwenVL, padding: int) -> None:
    x = hidden(model, 2, 9)
    alone = context(model, x)
    padded = torch.cat([hidden(model, 2, padding), x], dim=1)
    is_token = torch.arange(9 + padding) >= padding
    mask = padded_causal_mask(is_token.expand(2, -1), 9 + padding)
    torch.testing.assert_close(context(model, padded, mask=mask)[:, padding:], alone)


@pytest.mark.parametrize("first", [1, 2, 6])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_padding_between_prefix_and_suffix_changes_nothing(
    model: QwenVL, first: int, padding: int
) -> None:
    x = hidden(model, 2, first + 3)
    whole = context(model, x)
    cache = KVCache(model.config.text, 2, 32)
    head = context(model, x[:, :first], cache=cache)
    cache.advance(first)
    suffix = torch.cat([hidden(model, 2, padding), x[:, first:]], dim=1)
    is_token = torch.ones(2, first + padding + 3, dtype=torch.bool)
    is_token[:, first : first + padding] = False
    mask = padded_causal_mask(is_token, padding + 3)
    tail = context(model, suffix, mask=mask, cache=cache)[:, padding:]
    torch.testing.assert_close(torch.cat([head, tail], dim=1), whole, rtol=1e-4, atol=1e-5)
    # The state after it is that of the whole sequence too.
    plain = KVCache(model.config.text, 2, 32)
    context(model, x, cache=plain)
    for ours, expected in zip(cache.linear_state(0, x), plain.linear_state(0, x), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_rows_of_a_cache_are_selected_and_copied(model: QwenVL) -> None:
    x = hidden(model, 3, 5)
    cache = KVCache(model.config.text, 3, 8)
    context(model, x, cache=cache)
    copied = cache.copy_rows(torch.tensor([2, 0, 2]), 16)
    cache.select_rows(torch.tensor([1]))
    state, of_copy = cache.linear_state(0, x), copied.linear_state(0, x)
    alone = KVCache(model.config.text, 3, 8)
    context(model, x, cache=alone)
    for part, copy, before in zip(state, of_copy, alone.linear_state(0, x), strict=True):
        assert torch.equal(part, before[1:2])
        assert torch.equal(copy, before[[2, 0, 2]])


def test_prefill_equals_token_by_token(model: QwenVL) -> None:
    x = hidden(model, 2, 70)
    whole = context(model, x)
    cache = KVCache(model.config.text, 2, 70)
    steps = [context(model, x[:, t : t + 1], cache=cache) for t in range(70)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_shared_prefixes_change_no_answer(family: str) -> None:
    model = make_random_model(family)
    config = model.config
    start = prompt(config, [(1, 8, 8)], 30, 7)
    endings = [prompt(config, [], words, words) for words in (1, 4, 9)]
    asked = [
        type(start)(
            torch.cat([start.input_ids, end.input_ids]),
            torch.cat([start.position_ids, end.position_ids + start.next_position], dim=1),
            start.visuals,
        )
        for end in endings
    ]
    assert split_prompts(asked, config) is not None
    together = generate(model, asked, max_new_tokens=8, stop_ids=(), return_logits=True)
    for one, result in zip(asked, together, strict=True):
        [alone] = generate(model, [one], max_new_tokens=8, stop_ids=(), return_logits=True)
        assert alone.token_ids == result.token_ids
        assert alone.logits is not None and result.logits is not None
        torch.testing.assert_close(result.logits, alone.logits, rtol=0, atol=1e-3)


def test_a_quantized_cache_leaves_the_states_in_float32(model: QwenVL) -> None:
    cache = KVCache(model.config.text, 1, 8, "int8")
    x = hidden(model, 1, 4)
    context(model, x, cache=cache)
    assert cache.linear_state(0, x).rule.dtype == torch.float32


def test_gated_norm_by_hand() -> None:
    norm = GatedRMSNorm(2, 0.0)
    norm.weight.data = torch.tensor([2.0, 1.0])
    out = norm(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0]))
    scale = (25 / 2) ** -0.5
    torch.testing.assert_close(out, torch.tensor([0.0, 4 * scale * 0.7310586]))


@pytest.mark.parametrize("kernel", [2, 4])
def test_convolution_kernels_of_other_lengths(kernel: int) -> None:
    config = make_tiny_config("qwen3_5", text={"linear_conv_kernel_dim": kernel})
    model = make_random_model(config=config)
    asked = prompts(config)[0]
    [result] = generate(model, [asked], max_new_tokens=5, stop_ids=(), return_logits=True)
    whole = type(asked)(
        torch.cat([asked.input_ids, torch.tensor(result.token_ids)]),
        torch.arange(len(asked) + 5).expand(3, -1),
    )
    assert result.logits is not None
    torch.testing.assert_close(
        model([whole])[0][len(asked) - 1 : -1], result.logits, rtol=0, atol=1e-3
    )
