"""Scores and features that are not finite end in an error that names cause and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import RandomModel
from torch import Tensor

from vlpress.model.cache import KVCache
from vlpress.model.finite import NotFiniteError, check_finite, first_nonfinite_tensor
from vlpress.model.generation import Sampling, generate, sample_token
from vlpress.model.kv_quant.int8 import dequantize_kv, quantize_kv
from vlpress.model.kv_quant.types import CacheType
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL

SAMPLED = Sampling(temperature=1.0, seed=1)
PENALTY = Sampling(repetition_penalty=1.5)


@pytest.fixture(scope="module")
def prompts(checkpoint: Path) -> list[Prompt]:
    processor = Processor.from_folder(checkpoint)
    pixels = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    image = {"type": "image", "image": Image.fromarray(pixels)}
    question = {"type": "text", "text": "?"}
    return [
        processor.encode([{"role": "user", "content": "hi"}]),
        processor.encode([{"role": "user", "content": [image, question]}]),
    ]


def overflowing(model: QwenVL, dtype: torch.dtype = torch.float16) -> QwenVL:
    """The same function in fp32; in fp16 the MLP of a block exceeds the largest number."""
    mlp: Any = model.model.layers[1].mlp
    mlp.up_proj.weight.mul_(2.0**16)
    mlp.down_proj.weight.div_(2.0**16)
    return model.to(dtype)


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED, PENALTY])
@pytest.mark.parametrize("cache", ["model", "int8", "int4", "fp8"])
def test_activations_that_overflow_fp16(
    random_model: RandomModel, prompts: list[Prompt], sampling: Sampling, cache: Any
) -> None:
    model = overflowing(random_model())
    model.cache_type = cache
    seen: list[int] = []
    with pytest.raises(NotFiniteError, match=r"NaN in fp16: .*--dtype bf16 or fp32") as error:
        generate(
            model,
            prompts,
            max_new_tokens=3,
            stop_ids=(),
            sampling=sampling,
            on_token=lambda _, token: seen.append(token),
        )
    assert "\n" not in str(error.value)
    assert error.value.rows == (0, 1)
    assert seen == [], "no token is reported before its logits are checked"
    whole = overflowing(random_model(), torch.float32)
    assert len(generate(whole, prompts, max_new_tokens=3, stop_ids=())) == 2


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, "all -inf"])
@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED, PENALTY])
def test_one_prompt_at_one_step(
    random_model: RandomModel, prompts: list[Prompt], sampling: Sampling, bad: Any
) -> None:
    model, steps = random_model(), 0
    original = model.logits

    def logits(hidden: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        found = original(hidden)
        if steps == 3:
            found[1, 5:6] = bad if isinstance(bad, float) else 0.0
            if not isinstance(bad, float):
                found[1] = -torch.inf
        return found

    model.logits = logits  # type: ignore[method-assign]
    with pytest.raises(NotFiniteError, match=r"token 3\b.*prompt 2\b") as error:
        generate(model, prompts, max_new_tokens=5, stop_ids=(), sampling=sampling)
    assert error.value.rows == (1,)
    assert ("NaN" if bad is torch.nan else "infinity") in str(error.value)


def test_single_scores_of_minus_infinity_are_allowed(
    random_model: RandomModel, prompts: list[Prompt]
) -> None:
    model = random_model()
    free = [r.token_ids for r in generate(model, prompts, max_new_tokens=4, stop_ids=())]
    unused = next(i for i in range(200) if all(i not in tokens for tokens in free))
    original = model.logits

    def logits(hidden: Tensor) -> Tensor:
        found = original(hidden)
        found[:, unused] = -torch.inf
        return found

    model.logits = logits  # type: ignore[method-assign]
    assert [r.token_ids for r in generate(model, prompts, max_new_tokens=4, stop_ids=())] == free


def test_damaged_weights_are_named(random_model: RandomModel, prompts: list[Prompt]) -> None:
    model = random_model()
    assert first_nonfinite_tensor(model) is None
    model.get_parameter("model.layers.2.mlp.down_proj.weight")[0, 0] = torch.inf
    with pytest.raises(NotFiniteError, match=r"model\.layers\.2\.mlp\.down_proj\.weight"):
        generate(model, prompts[:1], max_new_tokens=1, stop_ids=())


def test_features_of_an_image(random_model: RandomModel, prompts: list[Prompt]) -> None:
    model = random_model()
    model.get_parameter("visual.merger.mlp.2.bias")[0] = torch.nan
    with pytest.raises(NotFiniteError, match="vision tower's features"):
        model.encode(prompts[1].visuals)
    with pytest.raises(NotFiniteError, match=r"visual\.merger\.mlp\.2\.bias"):
        generate(model, prompts, max_new_tokens=1, stop_ids=())
    assert generate(model, prompts[:1], max_new_tokens=1, stop_ids=())


def test_the_dtype_decides_about_the_remedy(random_model: RandomModel) -> None:
    bad = torch.tensor([1.0, -torch.inf])
    for dtype, remedy in ((torch.float16, "bf16 or fp32"), (torch.bfloat16, "use --dtype fp32")):
        with pytest.raises(NotFiniteError, match=remedy):
            check_finite(bad, "x is", random_model(dtype=dtype))
    with pytest.raises(NotFiniteError, match="infinity in fp32") as error:
        check_finite(bad, "x is", random_model())
    assert "--dtype" not in str(error.value)
    check_finite(bad[:1], "x is", random_model())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_quantized_cache_hides_nothing(random_model: RandomModel, bad: float) -> None:
    values = torch.ones(1, 2, 3, 32)
    values[0, 1, 2, 7] = bad
    wide = dequantize_kv(*quantize_kv(values), torch.float32)
    assert bool(wide[0, 1, 2].isnan().any()) and bool(wide[0, 0].isfinite().all())
    kinds: tuple[CacheType, ...] = ("int8", "int4", "fp8")
    for kind in kinds:
        cache = KVCache(random_model().config.text, 1, 4, kind)
        keys, _ = cache.update(0, values, values)
        assert not bool(keys[0, 1, 2].isfinite().all()) and bool(keys[0, 0].isfinite().all())


@pytest.mark.parametrize("temperature", [torch.nan, torch.inf, 1e-40])
def test_temperatures_that_no_score_survives(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        Sampling(temperature=temperature)


def test_small_temperatures_and_large_scores() -> None:
    logits, seen = torch.tensor([3e38, 1.0, -3e38]), torch.tensor([True, False, False])
    assert sample_token(logits, seen, Sampling(temperature=1e-6), torch.Generator()) == 0
    with pytest.raises(ValueError, match="repetition_penalty 1e-20"):
        sample_token(logits, seen, Sampling(repetition_penalty=1e-20))
    with pytest.raises(ValueError, match="repetition_penalty nan"):
        Sampling(repetition_penalty=float("nan"))
