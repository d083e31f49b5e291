"""Attention on the CPU, compared with a softmax in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlpress.model.cache import LayerCache, causal_mask
from vlpress.quant.kernels import library
from vlpress.quant.kernels.attention import (
    Heads,
    decode_attention,
    has_prefill_attention,
    prefill_attention,
)

AVAILABLE = [name for name in library.NAMES if not isinstance(library.find_kernels(name), str)]
if not AVAILABLE:
    pytest.skip(f"{library.find_kernels()}", allow_module_level=True)
SIZES = Heads(heads=6, kv_heads=2, head_dim=48)


def kernels(name: str) -> library.Kernels:
    table = library.find_kernels(name)
    assert not isinstance(table, str)
    return table


WITH_PREFILL = [name for name in AVAILABLE if has_prefill_attention(SIZES, kernels(name))]


def softmax_of(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, factor: float = 1.0) -> Tensor:
    """`[B, T, heads * D]` in float64 from `[B, T, heads, D]` and twice `[B, kv_heads, S, D]`."""
    q, groups = q.double().transpose(1, 2), q.shape[2] // k.shape[1]
    k, v = (part.double().repeat_interleave(groups, 1) for part in (k, factor * v))
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    out: Tensor = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v
    return out.transpose(1, 2).flatten(2)


def close(actual: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> bool:
    """Whether the error is within the rounding of weights and result to bf16."""
    expected, mass = softmax_of(q, k, v, mask), softmax_of(q, k, v.abs(), mask)
    return bool(
        ((actual.double() - expected).abs() <= 2**-8 * (expected.abs() + mass) + 1e-5).all()
    )


@pytest.mark.parametrize("name", AVAILABLE)
def test_decode_attention_equals_softmax(name: str) -> None:
    random, rows, past = torch.Generator().manual_seed(3), 2, 300
    heads, kv, width = SIZES.heads, SIZES.kv_heads, SIZES.head_dim
    q = 4 * torch.randn(rows, 1, heads, width, generator=random).bfloat16()
    k, v = (torch.randn(rows, 1, kv, width, generator=random).bfloat16() for _ in range(2))
    keys, values = (
        torch.randn(rows, kv, past + 9, width, generator=random).bfloat16() for _ in range(2)
    )
    mask = torch.rand(rows, 1, 1, past + 1, generator=random) < 0.7
    mask[..., -1] = True
    actual = decode_attention(SIZES, (q, k, v), LayerCache(keys, values), past, mask, kernels(name))
    assert torch.equal(keys[:, :, past], k[:, 0]) and torch.equal(values[:, :, past], v[:, 0])
    expected = softmax_of(q, keys[:, :, : past + 1], values[:, :, : past + 1], mask)
    torch.testing.assert_close(actual.double(), expected, rtol=2**-8, atol=1e-4)


def prompts(
    sizes: Heads, rows: int, tokens: int, columns: int, *, cached: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k, v; keys and values strided as in a cache, or as projections return them."""
    random = torch.Generator().manual_seed(rows + tokens + columns)
    q = 3 * torch.randn(rows, tokens, sizes.heads, sizes.head_dim, generator=random).bfloat16()
    shape = (
        (rows, sizes.kv_heads, columns + 5, sizes.head_dim)
        if cached
        else (rows, columns, sizes.kv_heads, sizes.head_dim)
    )
    k, v = (torch.randn(shape, generator=random).bfloat16() for _ in range(2))
    if cached:
        return q, k[:, :, :columns], v[:, :, :columns]
    return q, k.transpose(1, 2), v.transpose(1, 2)


@pytest.mark.parametrize("name", WITH_PREFILL)
@pytest.mark.parametrize(
    ("rows", "tokens", "columns"),
    [(1, 1, 1), (2, 1, 77), (2, 49, 49), (1, 100, 131), (3, 7, 600), (1, 97, 1100)],
)
@pytest.mark.parametrize("sizes", [SIZES, Heads(3, 3, 128), Heads(4, 1, 80), Heads(2, 2, 6)])
@pytest.mark.parametrize("masked", [False, True])
def test_prefill_attention_equals_softmax(
    name: str, rows: int, tokens: int, columns: int, sizes: Heads, masked: bool
) -> None:
    q, k, v = prompts(sizes, rows, tokens, columns, cached=masked)
    causal = causal_mask(tokens, columns, q.device)
    mask = causal.repeat(rows, 1, 1, 1)
    if masked and columns > tokens:
        mask[-1, :, :, : columns - tokens] = False
        mask[0, :, tokens // 2, 0] = False
    actual = prefill_attention(sizes, q, k, v, mask if masked else None, kernels(name))
    assert actual.dtype == torch.bfloat16 and actual.shape == (
        rows,
        tokens,
        q.shape[2] * q.shape[3],
    )
    assert close(actual, q, k, v, mask)


@pytest.mark.parametrize("name", WITH_PREFILL)
def test_one_mask_for_all_prompts(name: str) -> None:
    q, k, v = prompts(SIZES, 3, 20, 31, cached=True)
    mask = torch.ones(1, 1, 20, 31, dtype=torch.bool)
    mask[..., 3:9] = False
    actual = prefill_attention(SIZES, q, k, v, mask, kernels(name))
    assert close(actual, q, k, v, mask)
    assert torch.equal(
        actual, prefill_attention(SIZES, q, k, v, mask.repeat(3, 1, 1, 1), kernels(name))
    )


@pytest.mark.parametrize("name", WITH_PREFILL)
def test_results_are_independent_of_the_number_of_threads(name: str) -> None:
    q, k, v = prompts(SIZES, 2, 130, 130, cached=False)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(prefill_attention(SIZES, q, k, v, None, kernels(name)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", WITH_PREFILL)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_infinity_affect_only_their_token(name: str, bad: float) -> None:
    q, k, v = prompts(SIZES, 2, 60, 60, cached=False)
    clean = prefill_attention(SIZES, q, k, v, None, kernels(name))
    q[0, 50] = bad
    actual = prefill_attention(SIZES, q, k, v, None, kernels(name))
    assert bool(actual[0, 50].isnan().all())
    actual[0, 50] = clean[0, 50]
    assert torch.equal(actual, clean)


def test_prefill_attention_needs_bf16_products() -> None:
    assert WITH_PREFILL == [name for name in AVAILABLE if name == "avx512"]
    assert not any(has_prefill_attention(Heads(2, 2, 7), kernels(name)) for name in AVAILABLE)
