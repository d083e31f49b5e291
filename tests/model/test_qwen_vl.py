"""The whole model: batching, features and logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import RandomModel, TinyConfig

from vlpress.model import qwen_vl
from vlpress.model.generation import Sampling, generate
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor


def make_image(width: int, height: int, seed: int) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def prompts(processor: Processor) -> list[Prompt]:
    return make_prompts(processor)


def make_prompts(processor: Processor) -> list[Prompt]:
    """Text, one image, three unequal images, and a video with an image."""

    def encode(*parts: Any) -> Prompt:
        return processor.encode([{"role": "user", "content": list(parts)}])

    images = [make_image(56, 84, 0), make_image(112, 112, 1), make_image(140, 60, 2)]
    parts = [{"type": "image", "image": image} for image in images]
    frames = [make_image(84, 84, seed) for seed in range(3)]
    video = {"type": "video", "video": frames, "fps": 1.0}
    text = {"type": "text", "text": "Which one?"}
    return [encode(text), encode(parts[0], text), encode(*parts, text), encode(video, parts[1])]


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 2e-5) -> bool:
    return float((a - b).abs().max()) <= tolerance * float(b.abs().max())


def test_padding_changes_no_result(
    random_model: RandomModel, family: str, processors: Callable[[str], Processor]
) -> None:
    model, prompts = random_model(family), make_prompts(processors(family))
    together = model(prompts)
    for prompt, logits in zip(prompts, together, strict=True):
        assert logits.shape == (len(prompt), 288) and logits.dtype == torch.float32
        assert close(logits, model([prompt])[0])


def test_left_padding_of_a_batch(random_model: RandomModel, prompts: list[Prompt]) -> None:
    batch = random_model().embed(prompts)
    longest = max(len(prompt) for prompt in prompts)
    assert batch.embeds.shape == (4, longest, 128)
    assert batch.padding.tolist() == [longest - len(prompt) for prompt in prompts]
    for row, prompt in enumerate(prompts):
        start = longest - len(prompt)
        assert torch.equal(batch.position_ids[:, row, start:], prompt.position_ids)
    mask = batch.attention_mask()
    assert mask is not None and bool(mask.any(-1).all())
    first = int(batch.padding[0])
    assert not mask[0, 0, first:, :first].any()
    assert random_model().embed(prompts[:1]).attention_mask() is None


def test_last_positions_only(random_model: RandomModel, prompts: list[Prompt]) -> None:
    model = random_model()
    full = model(prompts)
    last = model(prompts, last=[1, 3, 2, 5])
    assert [part.shape[0] for part in last] == [1, 3, 2, 5]
    for part, whole in zip(last, full, strict=True):
        assert close(part, whole[-part.shape[0] :], 1e-6)


def test_given_features_are_used(random_model: RandomModel, prompts: list[Prompt]) -> None:
    model = random_model()
    features = [model.encode(prompt.visuals) for prompt in prompts]
    assert [part["hidden"].shape[0] for part in features[2]] == [6, 16, 10]
    for a, b in zip(model(prompts, features), model(prompts), strict=True):
        assert close(a, b)
    blank = [[{"hidden": torch.zeros_like(part["hidden"])} for part in parts] for parts in features]
    assert not close(model(prompts, blank)[1], model(prompts)[1], 0.05)


def test_images_are_seen(random_model: RandomModel, prompts: list[Prompt]) -> None:
    model = random_model()
    visual = prompts[1].visuals[0]
    other = type(visual)(
        visual.kind, visual.patches.flip(0), visual.grid, visual.seconds_per_grid, "other"
    )
    changed = Prompt(prompts[1].input_ids, prompts[1].position_ids, (other,))
    assert not close(model([changed], last=[1])[0], model([prompts[1]], last=[1])[0], 0.01)


def test_encoding_in_portions_changes_nothing(
    random_model: RandomModel, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model()
    visuals = [visual for prompt in prompts for visual in prompt.visuals]
    whole = model.encode(visuals)
    monkeypatch.setattr(qwen_vl, "MAX_PATCHES", 70)
    for a, b in zip(model.encode(visuals), whole, strict=True):
        assert close(a["hidden"], b["hidden"])


def test_wrong_numbers_of_features_and_prompts(
    random_model: RandomModel, prompts: list[Prompt]
) -> None:
    model = random_model()
    with pytest.raises(ValueError, match="no prompts"):
        model([])
    with pytest.raises(ValueError, match=r"prompt 1 .*\b6\b.*\b5\b"):
        model(prompts[:2], [[], [{"hidden": torch.zeros(5, 128)}]])
    with pytest.raises(ValueError, match=r"\b1 prompts .*\b2 prompts"):
        model(prompts[:2], [[]])
    cut = Prompt(prompts[1].input_ids[:8], prompts[1].position_ids[:, :8], prompts[1].visuals)
    with pytest.raises(ValueError, match="prompt 0"):
        model([cut])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_logits(
    random_model: RandomModel,
    family: str,
    processors: Callable[[str], Processor],
    dtype: torch.dtype,
) -> None:
    model, prompts = random_model(family, dtype=dtype), make_prompts(processors(family))
    assert model.dtype is dtype
    reference = random_model(family)(prompts)
    for half, full in zip(model(prompts), reference, strict=True):
        assert half.dtype == torch.float32
        # Rounding sends some tokens to other experts.
        bound = 0.1 if model.config.text.experts is None else 0.3
        assert (half - full).norm() / full.norm() < bound


def test_tied_head_shares_the_embedding(tiny_config: TinyConfig, random_model: RandomModel) -> None:
    model = random_model(config=tiny_config(tied=True))
    assert model.lm_head is None and "lm_head.weight" not in model.state_dict()
    hidden = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.logits(hidden), hidden @ model.model.embed_tokens.weight.T)


def test_gradients_reach_the_vision_tower(
    random_model: RandomModel, family: str, processors: Callable[[str], Processor]
) -> None:
    model, prompts = random_model(family).requires_grad_(True), make_prompts(processors(family))
    sum(logits.pow(2).mean() for logits in model(prompts)).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.gpu
def test_cuda_gives_the_results_of_the_cpu(
    random_model: RandomModel, family: str, processors: Callable[[str], Processor]
) -> None:
    model, prompts = random_model(family), make_prompts(processors(family))
    reference = model(prompts)
    tokens = generate(model, prompts, max_new_tokens=8, stop_ids=())
    moved = model.to("cuda")
    for there, here in zip(moved(prompts), reference, strict=True):
        assert there.device.type == "cuda"
        assert close(there.to("cpu"), here, 1e-4)
    sampled = generate(
        moved, prompts, max_new_tokens=4, stop_ids=(), sampling=Sampling(temperature=1.0)
    )
    assert [len(result.token_ids) for result in sampled] == [4] * len(prompts)
    greedy = generate(moved, prompts, max_new_tokens=8, stop_ids=())
    assert [result.token_ids for result in greedy] == [result.token_ids for result in tokens]
