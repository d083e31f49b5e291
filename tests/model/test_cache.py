"""The KV cache, in the model's dtype and quantized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_generation import make_prompts
from tiny_models import RandomModel, TinyConfig

from vlpress.model.cache import KVCache, check_cache_type
from vlpress.model.generation import generate
from vlpress.model.kv_quant.fp8 import round_fp8
from vlpress.model.kv_quant.int8 import dequantize_kv, quantize_kv
from vlpress.model.kv_quant.scales import KVScales
from vlpress.model.kv_quant.types import CacheType
from vlpress.model.loading import load_model
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL


@pytest.fixture(scope="module")
def model() -> QwenVL:
    return load_model("tiny", device="cpu", dtype="fp32")


def columns(model: QwenVL, rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    config, random = model.config.text, torch.Generator().manual_seed(seed)
    shape = rows, config.num_key_value_heads, tokens, config.head_dim
    return torch.randn(shape, generator=random)


def test_int8_is_within_half_a_step() -> None:
    values = torch.randn(2, 3, 5, 16, generator=torch.Generator().manual_seed(1))
    values[0, 0, 0] = 0
    levels, scales = quantize_kv(values)
    assert levels.dtype == torch.int8 and scales.shape == (2, 3, 5)
    assert float(scales[0, 0, 0]) == 1.0
    error = (dequantize_kv(levels, scales, torch.float32) - values).abs()
    assert bool((error <= 0.5001 * scales[..., None]).all())
    assert torch.equal(levels.abs().amax(-1)[1], torch.full((3, 5), 127, dtype=torch.int8))


@pytest.mark.parametrize("kind", ["model", "int8", "int4", "fp8"])
def test_columns_come_back_wherever_they_went(model: QwenVL, kind: Any) -> None:
    cache = KVCache(model.config.text, 2, 8, kind)
    first, second = columns(model, 2, 5), columns(model, 2, 2, seed=1)
    cache.update(0, first, -first)
    cache.advance(5)
    keys, values = cache.update(0, second, -second)
    near = torch.cat([first, second], 2)
    tolerance = {"model": 0.0, "int8": 0.02, "int4": 0.6, "fp8": 0.15}[kind]
    torch.testing.assert_close(keys, near, rtol=0, atol=tolerance)
    torch.testing.assert_close(values, -near, rtol=0, atol=tolerance)
    cache.advance(2)
    rows = torch.tensor([1, 0, 1])
    wider = cache.copy_rows(rows, 12)
    third = columns(model, 3, 1, seed=2)
    spread, _ = wider.update(0, third, third)
    assert torch.equal(spread[:, :, :7], keys[rows])
    wider.select_rows(torch.tensor([2]))
    kept, _ = wider.update(0, third[:1], third[:1])
    assert torch.equal(kept[:, :, :7], keys[[1]])
    assert wider.capacity == 12 and cache.capacity == 8
    wider.advance(1)
    wider.grow(9)
    assert wider.capacity == 9
    more, _ = wider.update(0, third[1:2], third[1:2])
    assert torch.equal(more[:, :, :8], kept)
    assert more.shape[2] == 9


def test_int8_takes_half_the_memory_and_a_scale(model: QwenVL) -> None:
    like = torch.zeros(1, dtype=torch.bfloat16)
    size = {}
    for kind in ("model", "int8"):
        stored = KVCache(model.config.text, 2, 64, kind).buffers(0, 1, like)
        size[kind] = sum(part.nbytes for part in stored if part is not None)
    width = model.config.text.head_dim
    assert size["int8"] / size["model"] == pytest.approx((width + 4) / (2 * width))


def test_answers_with_an_int8_cache_are_nearly_the_same(model: QwenVL) -> None:
    random = torch.Generator().manual_seed(3)
    prompts = [
        Prompt(
            torch.randint(0, 256, (length,), generator=random), torch.arange(length).expand(3, -1)
        )
        for length in (20, 33)
    ]
    logits = {}
    for kind in ("model", "int8"):
        model.cache_type = kind
        found = generate(model, prompts, max_new_tokens=6, stop_ids=(), return_logits=True)
        logits[kind] = torch.stack([one.logits[:2] for one in found if one.logits is not None])
    model.cache_type = "model"
    difference = (logits["int8"] - logits["model"]).abs().max()
    assert 0 < float(difference) < 0.05 * float(logits["model"].abs().max())


QUANTIZED: tuple[CacheType, ...] = ("int8", "int4", "fp8")


@pytest.mark.parametrize("kind", QUANTIZED)
def test_decoding_through_the_cache_gives_the_logits_of_one_pass(
    random_model: RandomModel,
    family: str,
    processors: Callable[[str], Processor],
    kind: CacheType,
) -> None:
    # In float64, rounding differs between the ways only where a value is on a boundary to 1e-16.
    exact, prompts = random_model(family).double(), make_prompts(processors(family))
    with torch.inference_mode():
        plain = exact(prompts)
        exact.cache_type = kind
        layers = len(exact.config.text.cached_layers)
        exact.cache_scales = [KVScales(0.02, 0.03)] * layers if kind == "fp8" else None
        whole = exact(prompts)
        packed = [exact([prompt])[0] for prompt in prompts]
        for prompt, logits in zip(prompts, packed, strict=True):
            torch.testing.assert_close(step_by_step(exact, prompt), logits, rtol=0, atol=1e-9)
    scale = max(float(logits.abs().max()) for logits in plain)
    for before, together, alone in zip(plain, whole, packed, strict=True):
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)
        assert float((before - alone).abs().max()) > 1e-4 * scale


def step_by_step(model: QwenVL, prompt: Prompt) -> torch.Tensor:
    """Logits of every position: the first half in one pass, then token by token."""
    batch, begin = model.embed([prompt]), len(prompt) // 2
    cache, rows = model.new_cache(1, len(prompt)), []
    for start, end in [(0, begin), *((i, i + 1) for i in range(begin, len(prompt)))]:
        added = {}
        if batch.added:
            indices = batch.added["visual_rows"]
            inside = (indices >= start) & (indices < end)
            added = {name: tensor[inside] for name, tensor in batch.added.items()}
            added["visual_rows"] = added["visual_rows"] - start
        hidden = model.model(
            batch.embeds[:, start:end], batch.position_ids[..., start:end], None, cache, added
        )
        rows.append(model.logits(hidden)[0])
    return torch.cat(rows)


def test_each_layer_has_its_scales(model: QwenVL) -> None:
    layers = model.config.text.num_hidden_layers
    scales = [KVScales(0.01 * (index + 1), 0.02) for index in range(layers)]
    cache = KVCache(model.config.text, 2, 8, "fp8", scales)
    new = columns(model, 2, 3)
    for layer in (0, layers - 1):
        keys, values = cache.update(layer, new, new)
        assert torch.equal(keys, round_fp8(new, 0.01 * (layer + 1)))
        assert torch.equal(values, round_fp8(new, 0.02))


def test_int4_refuses_heads_that_cannot_be_rotated(tiny_config: TinyConfig) -> None:
    config = tiny_config().text
    check_cache_type(config, "int4")
    odd = replace(config, head_dim=48, mrope_section=(8, 8, 8))
    for kind in ("model", "int8", "fp8"):
        check_cache_type(odd, kind)
    with pytest.raises(ValueError, match="head_dim 48"):
        check_cache_type(odd, "int4")
