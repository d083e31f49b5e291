"""The decoder: masks, cache, gradients and block seams."""

from __future__ import annotations

import pytest
import torch
from tiny_models import RandomModel, TinyConfig

from vlpress.model.cache import KVCache, causal_mask


def inputs(batch: int = 2, tokens: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(batch, tokens, 128, generator=generator)
    return embeds, torch.randint(0, 30, (3, batch, tokens), generator=generator)


def test_no_mask_means_causal(random_model: RandomModel) -> None:
    model = random_model().model
    embeds, ids = inputs()
    mask = torch.ones(9, 9, dtype=torch.bool).tril().expand(2, 1, 9, 9)
    torch.testing.assert_close(model(embeds, ids), model(embeds, ids, mask), atol=1e-5, rtol=1e-5)


def test_a_token_attends_to_no_later_token(random_model: RandomModel) -> None:
    model = random_model().model
    embeds, ids = inputs()
    changed = embeds.clone()
    changed[:, 5:] += 1.0
    before, after = model(embeds, ids), model(changed, ids)
    torch.testing.assert_close(before[:, :5], after[:, :5], atol=1e-6, rtol=1e-6)
    assert (before[:, 5:] - after[:, 5:]).abs().max() > 0.1


def test_a_custom_mask_is_applied(random_model: RandomModel) -> None:
    model = random_model().model
    embeds, ids = inputs()
    mask = causal_mask(9, 9, embeds.device).repeat(2, 1, 1, 1)
    mask[:, :, 4:, 1:4] = False
    changed = embeds.clone()
    changed[:, 1:4] += 1.0
    kept = model(embeds, ids, mask)[:, 4:]
    torch.testing.assert_close(kept, model(changed, ids, mask)[:, 4:], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("steps", [[9], [1] * 9, [4, 5], [3, 1, 4, 1]])
def test_cached_steps_equal_one_pass(random_model: RandomModel, steps: list[int]) -> None:
    model = random_model().model
    embeds, ids = inputs()
    cache = KVCache(model.config, 2, 9)
    parts, start = [], 0
    for step in steps:
        piece = slice(start, start + step)
        parts.append(model(embeds[:, piece], ids[:, :, piece], None, cache))
        start += step
    torch.testing.assert_close(torch.cat(parts, 1), model(embeds, ids), atol=1e-5, rtol=1e-5)
    assert cache.length == 9


def test_block_seams_reproduce_forward(random_model: RandomModel) -> None:
    model = random_model().model
    embeds, ids = inputs()
    state = model.prepare(embeds, ids)
    assert set(state) == {"hidden", "cos", "sin"}
    hidden = embeds
    for index, layer in enumerate(model.layers):
        hidden = layer(hidden, state["cos"], state["sin"])
        state = model.step(index, state)
        assert torch.equal(state["hidden"], hidden)
    assert torch.equal(model.finish(state), model(embeds, ids))


def test_gradients_reach_every_parameter(random_model: RandomModel) -> None:
    model = random_model().model.requires_grad_(True)
    embeds, ids = inputs()
    mask = causal_mask(9, 9, embeds.device)
    model(embeds, ids, mask).pow(2).sum().backward()
    missing = [
        name
        for name, parameter in model.named_parameters()
        if name != "embed_tokens.weight" and (parameter.grad is None or not parameter.grad.any())
    ]
    assert missing == []


def test_autocast_trains_in_bfloat16(random_model: RandomModel) -> None:
    model = random_model().model.requires_grad_(True)
    embeds, ids = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(embeds, ids)
    hidden.float().sum().backward()
    torch.testing.assert_close(hidden.float(), model(embeds, ids), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(random_model: RandomModel, dtype: torch.dtype) -> None:
    embeds, ids = inputs()
    half = random_model(dtype=dtype).model(embeds.to(dtype), ids)
    full = random_model().model(embeds, ids)
    assert half.dtype == dtype
    assert (half.float() - full).norm() / full.norm() < 0.03


def test_cache_refuses_more_than_it_holds(tiny_config: TinyConfig) -> None:
    cache = KVCache(tiny_config().text, 1, 4)
    cache.update(0, torch.zeros(1, 2, 3, 32), torch.zeros(1, 2, 3, 32))
    cache.advance(3)
    with pytest.raises(ValueError, match=r"\b4 tokens\b.*\b5\b"):
        cache.update(0, torch.zeros(1, 2, 2, 32), torch.zeros(1, 2, 2, 32))


def test_cache_keeps_chosen_rows(tiny_config: TinyConfig) -> None:
    cache = KVCache(tiny_config().text, 3, 4)
    keys = torch.arange(3.0)[:, None, None, None].expand(3, 2, 1, 32)
    cache.update(0, keys, -keys)
    cache.advance(1)
    cache.select_rows(torch.tensor([2, 0]))
    stored, values = cache.update(0, torch.ones(2, 2, 1, 32), torch.ones(2, 2, 1, 32))
    assert stored[:, 0, 0, 0].tolist() == [2.0, 0.0]
    assert values[:, 0, 0, 0].tolist() == [-2.0, 0.0]


def test_causal_mask_of_the_last_tokens() -> None:
    assert causal_mask(2, 3, torch.device("cpu"))[0, 0].tolist() == [
        [True, True, False],
        [True, True, True],
    ]
