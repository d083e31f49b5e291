"""Prompts without the dropped tokens: positions, logits and caches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import RandomModel
from torch import Tensor

from vlpress.model.cache import padded_causal_mask
from vlpress.model.features import HIDDEN
from vlpress.model.generation import generate
from vlpress.model.prefix_sharing import split_prompts
from vlpress.model.processing.inputs import Prompt, TokenSelection, visual_mask
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.model.token_reduction.apply import reduce_prompt, select_tokens
from vlpress.model.token_reduction.divprune import DivPrune
from vlpress.model.token_reduction.duplicates import Duplicates
from vlpress.model.token_reduction.random_tokens import Random

Processors = Callable[[str], Processor]


def image(width: int, height: int, seed: int) -> dict[str, Any]:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return {"type": "image", "image": Image.fromarray(pixels)}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def encode(processor: Processor, *parts: dict[str, Any], answer: str | None = None) -> Prompt:
    return processor.encode([{"role": "user", "content": list(parts)}], answer=answer)


def make_prompts(processor: Processor) -> list[Prompt]:
    """Text, an image, two images with text between them, and a video with an image."""
    frames = [image(84, 84, seed)["image"] for seed in range(4)]
    video = {"type": "video", "video": frames, "fps": 1.0}
    return [
        encode(processor, text("Hi")),
        encode(processor, image(140, 168, 0), text("Which?")),
        encode(processor, image(112, 112, 1), text("and"), image(84, 140, 2), text("?")),
        encode(processor, video, image(112, 84, 3), text("Then?")),
    ]


def masked_logits(model: QwenVL, prompt: Prompt, reduced: Prompt) -> Tensor:
    """Logits of the kept tokens in a run with all tokens, where none attends to a dropped one."""
    batch = model.embed([prompt])
    is_kept = torch.ones(1, len(prompt), dtype=torch.bool)
    places = torch.nonzero(visual_mask(prompt.input_ids, model.config)).flatten()
    start = 0
    for selection in reduced.selections:
        dropped = sorted(set(range(selection.total)) - set(selection.kept.tolist()))
        is_kept[0, places[start : start + selection.total][dropped]] = False
        start += selection.total
    mask = padded_causal_mask(is_kept, len(prompt))
    hidden = model.model(batch.embeds, batch.position_ids, mask, None, batch.added)
    return model.logits(hidden[0, is_kept[0]])


@torch.inference_mode()
@pytest.mark.parametrize("rule", [DivPrune(keep=0.4), Random(keep=0.3, seed=1)], ids=str)
def test_dropping_equals_masking(
    random_model: RandomModel, family: str, processors: Processors, rule: DivPrune | Random
) -> None:
    model, prompts = random_model(family), make_prompts(processors(family))
    if model.config.text.layer_types:
        pytest.skip("linear attention takes no mask of single tokens")
    model.reduction = rule
    reduced, _ = model.reduce(prompts)
    assert [each.dropped_tokens > 0 for each in reduced] == [False, True, True, True]
    for prompt, shorter, logits in zip(prompts, reduced, model(prompts), strict=True):
        assert len(logits) == len(shorter) == len(prompt) - shorter.dropped_tokens
        expected = masked_logits(model, prompt, shorter)
        assert float((logits - expected).abs().max()) <= 2e-5 * float(expected.abs().max())


@torch.inference_mode()
@pytest.mark.parametrize("rule", [DivPrune(keep=1), Random(keep=1), Duplicates(threshold=1.5)])
def test_keeping_all_tokens_changes_no_bit(
    random_model: RandomModel, family: str, processors: Processors, rule: DivPrune
) -> None:
    model, prompts = random_model(family), make_prompts(processors(family))
    expected = model(prompts)
    model.reduction = rule
    assert all(torch.equal(a, b) for a, b in zip(model(prompts), expected, strict=True))


def test_kept_tokens_and_text_keep_their_positions(
    random_model: RandomModel, family: str, processors: Processors
) -> None:
    model, prompts = random_model(family), make_prompts(processors(family))
    model.reduction = Random(keep=0.5)
    reduced, _ = model.reduce(prompts)
    for prompt, shorter in zip(prompts, reduced, strict=True):
        assert shorter.next_position == prompt.next_position
        before = list(zip(prompt.input_ids.tolist(), prompt.position_ids.T.tolist(), strict=True))
        after = list(zip(shorter.input_ids.tolist(), shorter.position_ids.T.tolist(), strict=True))
        rest = iter(before)
        assert all(token in rest for token in after)  # a subsequence
        texts = [
            [
                token
                for token in tokens
                if not bool(visual_mask(torch.tensor(token[0]), model.config))
            ]
            for tokens in (before, after)
        ]
        assert texts[0] == texts[1]


def test_video_is_reduced_frame_by_frame(
    random_model: RandomModel, family: str, processors: Processors
) -> None:
    model = random_model(family)
    prompt = make_prompts(processors(family))[3]
    model.reduction = Random(keep=0.5)
    ((shorter,), _) = model.reduce([prompt])
    video = prompt.visuals[0]
    frames, tokens = video.grid[0], video.grid[1] * video.grid[2] // 4
    assert frames == 2
    kept = [
        [index - start for index in shorter.selections[0].kept.tolist() if start <= index < end]
        for start, end in ((0, tokens), (tokens, 2 * tokens))
    ]
    assert [len(of_frame) for of_frame in kept] == [round(tokens / 2)] * 2
    assert kept[0] != kept[1]


def test_selection_depends_on_the_image_alone(
    random_model: RandomModel, family: str, processors: Processors
) -> None:
    model, processor = random_model(family), processors(family)
    model.reduction = DivPrune(keep=0.5)
    alone = encode(processor, image(140, 168, 0), text("Which?"))
    other = encode(processor, image(84, 84, 5), text("a"), image(140, 168, 0), text("b"))
    reduced, _ = model.reduce([alone, other])
    assert torch.equal(reduced[0].selections[0].kept, reduced[1].selections[1].kept)


def test_blank_paper_is_dropped(
    random_model: RandomModel, family: str, processors: Processors
) -> None:
    model, processor = random_model(family), processors(family)
    sheet = Image.new("RGB", (256, 256), "white")
    blank = encode(processor, {"type": "image", "image": sheet}, text("?"))
    model.reduction = Duplicates()
    ((shorter,), _) = model.reduce([blank])
    full = shorter.selections[0].total
    assert 0 < shorter.kept_visual_tokens < full
    assert shorter.kept_visual_tokens + shorter.dropped_tokens == full


@torch.inference_mode()
def test_answers_are_those_of_the_reduced_prompt_without_a_cache(
    random_model: RandomModel, family: str, processors: Processors
) -> None:
    model, processor = random_model(family), processors(family)
    model.reduction = Random(keep=0.5)
    shown = image(140, 168, 0)
    # Equal beginnings: the prefill of the prefix is shared.
    prompts = [encode(processor, shown, text(f"Which one is it? {word}")) for word in "abc"]
    reduced, _ = model.reduce(prompts)
    assert split_prompts(reduced, model.config) is not None
    answers = generate(model, prompts, max_new_tokens=3, stop_ids=(), return_logits=True)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.cat([prompt.input_ids, torch.tensor(answer.token_ids)])
        positions = prompt.next_position + torch.arange(3).expand(3, -1)
        longer = replace(
            prompt, input_ids=ids, position_ids=torch.cat([prompt.position_ids, positions], dim=1)
        )
        expected = model([longer])[0][-4:-1]
        assert answer.logits is not None
        difference = float((answer.logits - expected).abs().max())
        assert difference <= 2e-5 * float(expected.abs().max())


def test_prompts_of_other_selections_share_no_prefix(
    random_model: RandomModel, processor: Processor
) -> None:
    model = random_model()
    reduced: list[Prompt] = []
    shown = image(140, 168, 0)
    for seed, word in enumerate("ab"):
        model.reduction = Random(keep=0.5, seed=seed)
        prompts, _ = model.reduce([encode(processor, shown, text(f"Which one is it? {word}"))])
        reduced += prompts
    assert split_prompts(reduced, model.config) is None


def test_reduced_prompts_are_not_reduced_again(
    random_model: RandomModel, processor: Processor
) -> None:
    model = random_model()
    model.reduction = DivPrune(keep=0.5)
    prompts = make_prompts(processor)
    once, features = model.reduce(prompts)
    twice, _ = model.reduce(once, features)
    assert [a is b for a, b in zip(once, twice, strict=True)] == [True] * 4
    assert once[0] is prompts[0]  # text alone
    with pytest.raises(ValueError, match="the prompt is reduced already"):
        reduce_prompt(once[1], once[1].selections, model.config)


def test_answer_tokens_are_kept(random_model: RandomModel, processor: Processor) -> None:
    model = random_model()
    model.reduction = Random(keep=0.1)
    prompt = encode(processor, image(112, 112, 0), text("?"), answer="yes")
    ((shorter,), _) = model.reduce([prompt])
    count = prompt.answer_tokens
    assert shorter.answer_tokens == count
    assert torch.equal(shorter.input_ids[-count:], prompt.input_ids[-count:])


def test_selections_must_fit(random_model: RandomModel, processor: Processor) -> None:
    model = random_model()
    prompt = encode(processor, image(112, 112, 0), text("?"))
    (features,) = model.encode(prompt.visuals)
    fit = select_tokens(Random(keep=0.5), prompt.visuals[0], features, 2)
    assert fit.total == len(features[HIDDEN]) == 16
    for wrong in ([], [fit, fit], [TokenSelection(torch.tensor([0]), 15)]):
        with pytest.raises(ValueError, match="select from the visuals of this prompt"):
            reduce_prompt(prompt, wrong, model.config)


def test_prompt_that_ends_in_a_dropped_token_is_refused(
    random_model: RandomModel, processor: Processor
) -> None:
    model = random_model()
    whole = encode(processor, image(112, 112, 0), text("?"))
    end = int(torch.nonzero(visual_mask(whole.input_ids, model.config)).max()) + 1
    cut = replace(whole, input_ids=whole.input_ids[:end], position_ids=whole.position_ids[:, :end])
    with pytest.raises(
        ValueError, match="the prompt ends in an image or video, and the position after it"
    ):
        reduce_prompt(cut, [TokenSelection(torch.arange(2), 16)], model.config)
