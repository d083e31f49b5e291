"""Qwen-VL of 2023 against a second implementation of the published formulas."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from qwen_v1_models import (
    CONFIG,
    PAD,
    pixels,
    v1_config,
    v1_prompt,
    visual_of,
    write_v1_checkpoint,
)
from qwen_v1_reference import features, logits, ntk_alpha
from torch import Tensor

from vlpress.model.checkpoint import CheckpointReader
from vlpress.model.dynamic_ntk import ntk_exponent
from vlpress.model.generation import generate
from vlpress.model.loading import load_model
from vlpress.model.processing.inputs import Prompt
from vlpress.model.qwen_vl import QwenVL
from vlpress.model.rope import mrope_ids

TOLERANCE = 1e-4
SHORT: dict[str, Any] = {"seq_length": 12}
"""A length of training that prompts of a few tokens go beyond."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[QwenVL, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("qwen-v1")
    tensors = write_v1_checkpoint(folder)
    return load_model(folder, device="cpu"), tensors


def with_config(model: QwenVL, **changes: Any) -> QwenVL:
    """The same weights with another config."""
    other = QwenVL(v1_config(**changes)).eval()
    other.load_state_dict(model.state_dict())
    return other.requires_grad_(False)


def test_features_are_those_of_the_formulas(loaded: tuple[QwenVL, dict[str, Tensor]]) -> None:
    model, tensors = loaded
    doubles = {name: tensor.double() for name, tensor in tensors.items()}
    ours = model.encode([visual_of(pixels(0)), visual_of(pixels(1))])
    for seed, each in enumerate(ours):
        theirs = features(pixels(seed).double(), doubles, CONFIG["visual"])
        assert theirs.std() > 0.5
        torch.testing.assert_close(each["hidden"].double(), theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("images", "words", "changes"), [(2, 6, {}), (1, 9, SHORT), (0, 30, SHORT)]
)
def test_logits_are_those_of_the_formulas(
    loaded: tuple[QwenVL, dict[str, Tensor]], images: int, words: int, changes: dict[str, Any]
) -> None:
    base, tensors = loaded
    model = with_config(base, **changes)
    prompt = v1_prompt(images, words, model.config)
    inputs = [pixels(seed).double() for seed in range(images)]
    theirs = logits(prompt.input_ids.tolist(), inputs, tensors, CONFIG | changes)
    assert float(theirs.std()) > 1
    if changes:  # the lengths that the rules are about
        assert ntk_alpha(len(prompt), 12) == 2 ** (math.ceil(math.log2(len(prompt) / 12)) + 1) - 1
    ours = model([prompt])[0].double()
    assert float((ours - theirs).abs().max()) <= TOLERANCE


def test_the_rule_of_the_rotary_base() -> None:
    assert [ntk_exponent(tokens, 2048) for tokens in (1, 2048, 2049, 4096, 4097, 8192)] == [
        *(0, 0, 2, 2, 3, 3)
    ]
    assert [ntk_alpha(tokens, 2048) for tokens in (1, 2048, 2049, 4096, 4097, 8192)] == [
        *(1, 1, 3, 3, 7, 7)
    ]


@pytest.mark.parametrize("changes", [{}, {**SHORT, "seq_length": 40}])
def test_tokens_one_by_one_are_one_pass(
    loaded: tuple[QwenVL, dict[str, Tensor]], changes: dict[str, Any]
) -> None:
    # The second prompt is longer than the training, and its base stays that of its prefix.
    model = with_config(loaded[0], **changes)
    prompt = v1_prompt(2, 8, model.config, answer=4)
    whole = model([prompt])[0]
    cache = model.new_cache(1, len(prompt))
    batch = model.embed([prompt])
    rows, first = [], len(prompt) - 4
    for begin, end in [(0, first), *((first + i, first + i + 1) for i in range(4))]:
        new = slice(begin, end)
        hidden = model.model(batch.embeds[:, new], batch.position_ids[..., new], None, cache)
        rows.append(model.logits(hidden)[0])
    torch.testing.assert_close(torch.cat(rows), whole, atol=TOLERANCE, rtol=0)


def test_the_base_of_an_answer_is_that_of_the_prompt(
    loaded: tuple[QwenVL, dict[str, Tensor]],
) -> None:
    changes = {"seq_length": 40}
    model = with_config(loaded[0], **changes)
    prompt = v1_prompt(1, 17, model.config)  # 38 tokens: the answer goes beyond the training
    given = generate(model, [prompt], max_new_tokens=6, stop_ids=[], return_logits=True)[0]
    assert given.logits is not None
    ids = [*prompt.input_ids.tolist(), *given.token_ids]
    theirs = logits(ids, [pixels(0).double()], loaded[1], CONFIG | changes, len(prompt))
    ours = given.logits.double()
    assert float((ours - theirs[len(prompt) - 1 : -1]).abs().max()) <= TOLERANCE
    # A prompt of all these tokens has another base.
    other = logits(ids, [pixels(0).double()], loaded[1], CONFIG | changes)
    assert float((other - theirs).abs().max()) > 0.01


def test_a_batch_of_prompts_with_several_bases(loaded: tuple[QwenVL, dict[str, Tensor]]) -> None:
    model = with_config(loaded[0], **SHORT)
    prompts = [v1_prompt(0, words, model.config) for words in (4, 12, 40)]
    for prompt, together in zip(prompts, model(prompts), strict=True):
        torch.testing.assert_close(together, model([prompt])[0], atol=TOLERANCE, rtol=0)


def test_prompts_with_one_prefix_and_several_bases(
    loaded: tuple[QwenVL, dict[str, Tensor]],
) -> None:
    """Their keys differ although their first tokens do not, so they share no prefill."""
    model = with_config(loaded[0], seq_length=40)
    text = torch.randint(256, (60,), generator=torch.Generator().manual_seed(0))
    prompts = [
        Prompt(text[:length], mrope_ids(text[:length], [], [], model.config))
        for length in (38, 39, 59, 60)
    ]
    options: dict[str, Any] = {"max_new_tokens": 4, "stop_ids": [], "return_logits": True}
    for prompt, given in zip(prompts, generate(model, prompts, **options), strict=True):
        alone = generate(model, [prompt], **options)[0]
        assert given.logits is not None
        assert alone.logits is not None
        torch.testing.assert_close(given.logits, alone.logits, atol=TOLERANCE, rtol=0)
        assert given.token_ids == alone.token_ids


def test_ids_of_image_tokens_do_not_matter(loaded: tuple[QwenVL, dict[str, Tensor]]) -> None:
    model = loaded[0]
    prompt = v1_prompt(1, 5, model.config)
    before = model([prompt])[0]
    changed = with_config(model)
    with torch.no_grad():
        changed.model.embed_tokens.weight[PAD] = 7.0
    torch.testing.assert_close(changed([prompt])[0], before, atol=0, rtol=0)


def test_images_of_another_size_are_refused(loaded: tuple[QwenVL, dict[str, Tensor]]) -> None:
    odd = replace(visual_of(pixels(0)), patches=torch.randn(16, 588), grid=(1, 4, 4))
    with pytest.raises(ValueError, match=r"grid \(1, 4, 4\).*8 x 8"):
        loaded[0].encode([odd])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"visual": None}, "visual"),
        ({"no_bias": False}, "no_bias"),
        ({"rotary_pct": 0.5}, "rotary_pct"),
        ({"intermediate_size": 511}, "511"),
        ({"kv_channels": 32}, "kv_channels 32"),
        ({"visual": CONFIG["visual"] | {"n_queries": 15}}, "n_queries 15"),
        ({"visual": CONFIG["visual"] | {"output_dim": 192}}, "output_dim 192"),
        ({"visual": CONFIG["visual"] | {"output_dim": 64, "width": 64}}, "output_dim 64"),
    ],
)
def test_configs_that_are_not_implemented(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        v1_config(**changes)


def test_a_checkpoint_keeps_its_names(tmp_path: Path) -> None:
    tensors = write_v1_checkpoint(tmp_path)
    reader = CheckpointReader(tmp_path)
    assert {reader.source_name(name) for name in reader.names()} == set(tensors)
