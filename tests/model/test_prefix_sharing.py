"""Prefix sharing: shared prefixes are prefilled once and change no result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_models import RandomModel

from vlpress.model import prefix_sharing
from vlpress.model.generation import generate
from vlpress.model.prefix_sharing import split_prompts
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> Processor:
    return Processor.from_folder(checkpoint)


def random_image(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (112, 140, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ask(processor: Processor, text: str, *seeds: int) -> Prompt:
    shown = [{"type": "image", "image": random_image(seed)} for seed in seeds]
    return processor.encode([{"role": "user", "content": [*shown, {"type": "text", "text": text}]}])


def rotations(processor: Processor, seed: int, options: str = "wxyz") -> list[Prompt]:
    turned = [options[k:] + options[:k] for k in range(len(options))]
    return [ask(processor, f"Which one? {' '.join(t)}.", seed) for t in turned]


def joined(prefix: Prompt, suffix: Prompt) -> tuple[list[int], list[list[int]]]:
    ids = torch.cat([prefix.input_ids, suffix.input_ids]).tolist()
    return ids, torch.cat([prefix.position_ids, suffix.position_ids], dim=1).tolist()


def test_prefixes_and_suffixes_are_the_prompts(processor: Processor) -> None:
    prompts = [*rotations(processor, 1), *rotations(processor, 2, "ab"), ask(processor, "hi")]
    split = split_prompts(prompts, processor.config)
    assert split is not None
    assert len(split.prefixes) == 3
    assert split.prefix_of == [0, 0, 0, 0, 1, 1, 2]
    assert split.example_of == [0, 4, 6]
    for index, prompt in enumerate(prompts):
        prefix, suffix = split.prefixes[split.prefix_of[index]], split.suffixes[index]
        assert joined(prefix, suffix) == (prompt.input_ids.tolist(), prompt.position_ids.tolist())
        assert len(suffix) >= 1
        assert not suffix.visuals


def test_short_common_prefixes_are_not_shared(processor: Processor) -> None:
    assert split_prompts([ask(processor, "a", 1), ask(processor, "a", 2)], processor.config) is None
    assert split_prompts([ask(processor, "a", 1)], processor.config) is None


def test_text_before_the_image_prevents_sharing(processor: Processor) -> None:
    image = {"type": "image", "image": random_image(1)}
    prompts = [
        processor.encode([{"role": "user", "content": [{"type": "text", "text": t}, image]}])
        for t in ("one", "two")
    ]
    prompts += rotations(processor, 2)
    split = split_prompts(prompts, processor.config)
    assert split is not None
    assert split.prefix_of == [0, 1, 2, 2, 2, 2]
    assert [len(suffix) for suffix in split.suffixes[:2]] == [1, 1]


TEXTS = st.lists(st.tuples(st.integers(0, 2), st.text("ab ", min_size=1, max_size=8)), min_size=1)


@settings(max_examples=25, deadline=None)
@given(TEXTS)
def test_any_prompts_can_be_put_together_again(
    processor: Processor, questions: list[tuple[int, str]]
) -> None:
    prompts = [ask(processor, text, *([seed] if seed else [])) for seed, text in questions]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_sharing, "MIN_SAVED_SHARE", -9.0)
        split = split_prompts(prompts, processor.config)
    assert split is not None
    for index, prompt in enumerate(prompts):
        prefix, suffix = split.prefixes[split.prefix_of[index]], split.suffixes[index]
        assert joined(prefix, suffix)[0] == prompt.input_ids.tolist()
        assert [v.digest for v in prefix.visuals] == [v.digest for v in prompt.visuals]


def test_generation_is_the_same_as_one_by_one(
    random_model: RandomModel, family: str, processors: Callable[[str], Processor]
) -> None:
    model, processor = random_model(family), processors(family)
    prompts = [*rotations(processor, 1), *rotations(processor, 2, "ab"), ask(processor, "hello")]
    options: dict[str, Any] = {"max_new_tokens": 10, "stop_ids": (), "return_logits": True}
    together = generate(model, prompts, **options)
    for prompt, batched in zip(prompts, together, strict=True):
        [alone] = generate(model, [prompt], **options)
        assert batched.token_ids == alone.token_ids
        assert batched.logits is not None and alone.logits is not None
        spread = float(alone.logits.abs().max())
        assert float((batched.logits - alone.logits).abs().max()) < 1e-4 * spread


def test_features_of_a_prefix_are_those_of_its_prompts(
    random_model: RandomModel, processor: Processor
) -> None:
    model = random_model()
    prompts = [*rotations(processor, 1, "ab"), *rotations(processor, 2, "ab")]
    features = [model.encode(prompt.visuals) for prompt in prompts]
    options: dict[str, Any] = {"max_new_tokens": 6, "stop_ids": ()}
    given = generate(model, prompts, features=features, **options)
    assert [g.token_ids for g in given] == [
        g.token_ids for g in generate(model, prompts, **options)
    ]
    swapped = generate(model, prompts, features=features[2:] + features[:2], **options)
    assert [g.token_ids for g in swapped] != [g.token_ids for g in given]


def test_each_image_is_prefilled_once(
    random_model: RandomModel, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model()
    read: list[int] = []
    original = model.model.forward

    def counting(embeds: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        read.append(embeds.shape[0] * embeds.shape[1])
        result: torch.Tensor = original(embeds, *args, **kwargs)  # type: ignore[arg-type]
        return result

    monkeypatch.setattr(model.model, "forward", counting)
    prompts = rotations(processor, 1)
    generate(model, prompts, max_new_tokens=1, stop_ids=())
    assert sum(read) < 0.6 * sum(map(len, prompts))
