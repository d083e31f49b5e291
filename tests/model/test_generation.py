"""Greedy and sampled generation: independent of the batch, stopped where it must."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reference_model import silence
from tiny_models import RandomModel

from vlpress.model import generation
from vlpress.model.cache import KVCache
from vlpress.model.generation import Sampling, generate, sample_token
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor


@pytest.fixture(scope="module")
def prompts(processor: Processor) -> list[Prompt]:
    return make_prompts(processor)


def make_prompts(processor: Processor) -> list[Prompt]:
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (84, 112, 3), dtype=np.uint8))
    part = {"type": "image", "image": image}
    return [
        processor.encode([{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]),
        processor.encode([{"role": "user", "content": "a longer question in words alone"}]),
        processor.encode([{"role": "user", "content": "hi"}]),
    ]


def greedy_by_forward(model: Any, prompt: Prompt, count: int) -> list[int]:
    """The slow way: a full pass for every token."""
    tokens: list[int] = []
    for _ in range(count):
        ids = torch.cat([prompt.input_ids, torch.tensor(tokens, dtype=torch.int64)])
        new = torch.arange(len(tokens)) + prompt.next_position
        positions = torch.cat([prompt.position_ids, new.expand(3, -1)], dim=1)
        logits = model([Prompt(ids, positions, prompt.visuals)], last=[1])[0]
        tokens.append(int(logits[0].argmax()))
    return tokens


def test_cached_generation_equals_full_passes(
    random_model: RandomModel, family: str, processors: Callable[[str], Processor]
) -> None:
    model, prompts = random_model(family), make_prompts(processors(family))
    # A generated placeholder would be a prompt without its image.
    silence(model, model.config.placeholder_ids)
    results = generate(model, prompts, max_new_tokens=16, stop_ids=())
    for prompt, result in zip(prompts, results, strict=True):
        assert list(result.token_ids) == greedy_by_forward(model, prompt, 16)
        assert not result.stopped


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.0, top_p=0.9, top_k=50, seed=3)]
)
def test_batch_changes_nothing(
    random_model: RandomModel, prompts: list[Prompt], sampling: Sampling
) -> None:
    model = random_model()

    def run(some: list[Prompt]) -> list[tuple[int, ...]]:
        results = generate(model, some, max_new_tokens=20, stop_ids=(), sampling=sampling)
        return [result.token_ids for result in results]

    assert run(prompts) == [run([prompt])[0] for prompt in prompts]


def test_finished_prompts_leave_the_batch(random_model: RandomModel, prompts: list[Prompt]) -> None:
    model = random_model()
    free = generate(model, prompts, max_new_tokens=12, stop_ids=())
    # Token 4 of the first prompt, which no other prompt generates earlier.
    stop = free[0].token_ids[4]
    results = generate(model, prompts, max_new_tokens=12, stop_ids={stop}, return_logits=True)
    for result, whole in zip(results, free, strict=True):
        end = whole.token_ids.index(stop) if stop in whole.token_ids else None
        assert result.token_ids == whole.token_ids[:end]
        assert result.stopped == (end is not None)
        assert result.logits is not None
        assert result.logits.shape == (len(result.token_ids) + result.stopped, 288)
    assert results[0].stopped and not all(result.stopped for result in results)


def test_long_answers_enlarge_the_cache(
    random_model: RandomModel, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model()
    options: dict[str, Any] = {"max_new_tokens": 9, "stop_ids": ()}
    expected = generate(model, prompts, **options)
    capacities: list[int] = []
    grow = KVCache.grow

    def record(cache: KVCache, capacity: int) -> None:
        capacities.append(capacity - cache.capacity)
        grow(cache, capacity)

    monkeypatch.setattr(KVCache, "grow", record)
    monkeypatch.setattr(generation, "RESERVED_TOKENS", 2)
    assert generate(model, prompts, **options) == expected
    assert capacities == [7]  # not beyond the limit


def test_logits_are_raw_and_float32(random_model: RandomModel, prompts: list[Prompt]) -> None:
    model = random_model(dtype=torch.bfloat16)
    penalized = Sampling(repetition_penalty=5.0)
    result = generate(
        model, prompts[:1], max_new_tokens=3, stop_ids=(), sampling=penalized, return_logits=True
    )[0]
    assert result.logits is not None and result.logits.dtype == torch.float32
    torch.testing.assert_close(result.logits[:1], model(prompts[:1], last=[1])[0])
    assert generate(model, prompts[:1], max_new_tokens=1, stop_ids=())[0].logits is None


def test_tokens_are_streamed_in_order(random_model: RandomModel, prompts: list[Prompt]) -> None:
    model = random_model()
    seen: dict[int, list[int]] = {}

    def receive(index: int, token: int) -> None:
        seen.setdefault(index, []).append(token)

    results = generate(model, prompts, max_new_tokens=6, stop_ids=(), on_token=receive)
    assert {index: tuple(tokens) for index, tokens in seen.items()} == {
        index: result.token_ids for index, result in enumerate(results)
    }


def test_sampling_repeats_with_its_seed_and_leaves_the_global_generator_alone(
    random_model: RandomModel, prompts: list[Prompt]
) -> None:
    model = random_model()
    before = torch.get_rng_state()

    def run(seed: int) -> tuple[int, ...]:
        sampling = Sampling(temperature=2.0, seed=seed)
        return generate(model, prompts[:1], max_new_tokens=12, stop_ids=(), sampling=sampling)[
            0
        ].token_ids

    assert run(1) == run(1) != run(2)
    assert torch.equal(before, torch.get_rng_state())


def histogram(pick: Callable[[torch.Generator], int], draws: int = 4000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    picks = torch.tensor([pick(generator) for _ in range(draws)])
    return torch.bincount(picks, minlength=4) / draws


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0), [0.5, 0.25, 0.15, 0.1]),
        (Sampling(temperature=1.0, top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(temperature=1.0, top_p=0.6), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(temperature=1.0, top_p=0.4), [1, 0, 0, 0]),
        (Sampling(temperature=0.5), [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
        (Sampling(), [1, 0, 0, 0]),
    ],
)
def test_choice_follows_the_distribution(sampling: Sampling, expected: list[float]) -> None:
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
    seen = torch.zeros(4, dtype=torch.bool)
    found = histogram(lambda generator: sample_token(logits, seen, sampling, generator))
    torch.testing.assert_close(found, torch.tensor(expected).float(), atol=0.03, rtol=0)


def test_repetition_penalty_weakens_seen_tokens_of_either_sign() -> None:
    seen = torch.tensor([True, False, False])
    rule = Sampling(repetition_penalty=2.0)
    assert sample_token(torch.tensor([3.0, 2.0, 1.0]), seen, rule) == 1
    assert sample_token(torch.tensor([-1.0, -1.5, -3.0]), seen, rule) == 1
    assert sample_token(torch.tensor([5.0, 2.0, 1.0]), seen, rule) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, r"temperature -1\.0\b"),
        ({"top_p": 0.0}, r"top_p 0\.0\b"),
        ({"top_k": -1}, r"top_k -1\b"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty 0\.0\b"),
    ],
)
def test_impossible_sampling(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


def test_nothing_to_generate(random_model: RandomModel, prompts: list[Prompt]) -> None:
    with pytest.raises(ValueError, match=r"max_new_tokens 0\b"):
        generate(random_model(), prompts, max_new_tokens=0, stop_ids=())
