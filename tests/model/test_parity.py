"""Parity with transformers 5: same weights, same patches, same positions, same answers.

For videos transformers gets our position ids: since version 4.52 its positions after a
video differ from those of training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import TinyConfig, make_random_model, make_tiny_config, new_name

from vlpress.model.generation import generate
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.model.rope import decoder_frequencies
from vlpress.model.sizes import YarnScaling

transformers = pytest.importorskip("transformers", minversion="5.0")

TOLERANCE = 1e-4  # of the largest value
STOP = 287


@dataclass(frozen=True)
class Pair:
    ours: QwenVL
    theirs: Any
    processor: Processor


def build_theirs(ours: QwenVL) -> Any:
    names = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL"}
    name = names[ours.config.family]
    raw = {key: value for key, value in ours.config.raw.items() if key != "model_type"}
    config = getattr(transformers, f"{name}Config")(**raw)
    theirs = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    state = {new_name(key): value for key, value in ours.state_dict().items()}
    if ours.lm_head is None:
        state["lm_head.weight"] = ours.model.embed_tokens.weight
    theirs.load_state_dict(state, strict=True)
    return theirs


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl"])
def pair(request: pytest.FixtureRequest, checkpoint: Path) -> Pair:
    ours = make_random_model(request.param)
    assert isinstance(ours.lm_head, torch.nn.Linear)
    # Placeholders and the stop token must not be generated: with weight 0 they never win.
    ours.lm_head.weight[[ours.config.image_token_id, ours.config.video_token_id, STOP]] = 0
    loaded = Processor.from_folder(checkpoint)
    processor = Processor(ours.config, loaded.tokenizer, loaded.settings)
    return Pair(ours, build_theirs(ours), processor)


def make_image(width: int, height: int, seed: int) -> Image.Image:
    """Smooth noise: resizing has something to do."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


IMAGES = [make_image(100, 60, 0), make_image(64, 130, 1), make_image(180, 170, 2)]
FRAMES = [make_image(90, 120, seed) for seed in range(3, 8)]
VIDEO = {"type": "video", "video": FRAMES, "fps": 1.5}
CASES: dict[str, list[dict[str, Any]]] = {
    "text": [],
    "one image": [{"type": "image", "image": IMAGES[0]}],
    "three unequal images": [{"type": "image", "image": image} for image in IMAGES],
    "video": [VIDEO],
    "mixed": [{"type": "image", "image": IMAGES[1]}, VIDEO, {"type": "image", "image": IMAGES[2]}],
}


def encode(processor: Processor, name: str) -> Prompt:
    question = {"type": "text", "text": f"What about {name}?"}
    return processor.encode([{"role": "user", "content": [*CASES[name], question]}])


def visual_inputs(prompt: Prompt) -> dict[str, torch.Tensor]:
    inputs: dict[str, torch.Tensor] = {}
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        visuals = [visual for visual in prompt.visuals if visual.kind == kind]
        if visuals:
            inputs[pixels] = torch.cat([visual.patches for visual in visuals])
            inputs[f"{kind}_grid_thw"] = torch.tensor([visual.grid for visual in visuals])
    return inputs


def token_types(prompt: Prompt, config: Any) -> torch.Tensor:
    is_image = prompt.input_ids == config.image_token_id
    is_video = prompt.input_ids == config.video_token_id
    types: torch.Tensor = (is_image.int() + 2 * is_video.int())[None]
    return types


def their_logits(theirs: Any, prompt: Prompt) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = theirs(
            input_ids=prompt.input_ids[None],
            position_ids=prompt.position_ids[:, None],
            **visual_inputs(prompt),
        ).logits[0]
    return logits


def assert_parity(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= TOLERANCE * float(theirs.abs().max())


@pytest.mark.parametrize("image", IMAGES, ids=["wide", "tall", "large"])
@pytest.mark.parametrize("low_high", [(3136, 12544), (78400, 12845056)])
def test_patches(pair: Pair, image: Image.Image, low_high: tuple[int, int]) -> None:
    low, high = low_high
    reference = transformers.Qwen2VLImageProcessorPil(min_pixels=low, max_pixels=high)(
        image, return_tensors="pt"
    )
    settings = type(pair.processor.settings)(min_pixels=low, max_pixels=high)
    visual = Processor(pair.ours.config, pair.processor.tokenizer, settings).image(image)
    assert [list(visual.grid)] == reference["image_grid_thw"].tolist()
    assert torch.equal(visual.patches, reference["pixel_values"])


@pytest.mark.parametrize("name", ["one image", "three unequal images", "video", "mixed"])
def test_vision_features(pair: Pair, name: str) -> None:
    prompt = encode(pair.processor, name)
    patches = torch.cat([visual.patches for visual in prompt.visuals])
    grid = torch.tensor([visual.grid for visual in prompt.visuals])
    with torch.no_grad():
        reference = pair.theirs.model.visual(patches, grid_thw=grid).pooler_output
        features = torch.cat([each["hidden"] for each in pair.ours.encode(prompt.visuals)])
    assert float(reference.std()) > 0.1
    assert_parity(features, reference)


@pytest.mark.parametrize("name", CASES)
def test_logits(pair: Pair, name: str) -> None:
    prompt = encode(pair.processor, name)
    reference = their_logits(pair.theirs, prompt)
    assert float((reference.max(-1).values - reference.min(-1).values).min()) >= 1
    assert_parity(pair.ours([prompt])[0], reference)


def test_logits_of_a_batch_of_unequal_prompts(pair: Pair) -> None:
    prompts = [encode(pair.processor, name) for name in CASES]
    assert len({len(prompt) for prompt in prompts}) == len(prompts)
    for prompt, logits in zip(prompts, pair.ours(prompts), strict=True):
        assert_parity(logits, their_logits(pair.theirs, prompt))


@pytest.mark.parametrize("name", ["text", "one image", "three unequal images"])
def test_position_ids_of_text_and_images(pair: Pair, name: str) -> None:
    prompt = encode(pair.processor, name)
    grids = visual_inputs(prompt).get("image_grid_thw")
    reference, _ = pair.theirs.model.get_rope_index(
        prompt.input_ids[None], token_types(prompt, pair.ours.config), image_grid_thw=grids
    )
    assert torch.equal(prompt.position_ids, reference[:, 0])


def test_greedy_generation_of_32_tokens(pair: Pair) -> None:
    prompts = [encode(pair.processor, name) for name in CASES]
    results = generate(pair.ours, prompts, max_new_tokens=32, stop_ids=(), return_logits=True)
    for prompt, result in zip(prompts, results, strict=True):
        tokens = torch.tensor(result.token_ids)
        new = torch.arange(32) + prompt.next_position
        whole = Prompt(
            torch.cat([prompt.input_ids, tokens]),
            torch.cat([prompt.position_ids, new.expand(3, -1)], dim=1),
            prompt.visuals,
        )
        # Teacher-forced on our tokens: if each is their first choice, they generate the same.
        reference = their_logits(pair.theirs, whole)[len(prompt) - 1 : -1]
        assert reference.argmax(-1).tolist() == tokens.tolist()
        # KV-cache decoding against their prefill.
        assert result.logits is not None
        assert_parity(result.logits, reference)
    assert len({result.token_ids for result in results}) == len(results)


@pytest.mark.parametrize("name", ["text", "one image", "three unequal images"])
def test_their_own_generate_gives_the_same_tokens(pair: Pair, name: str) -> None:
    prompt = encode(pair.processor, name)
    tokens = pair.theirs.generate(
        input_ids=prompt.input_ids[None],
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        mm_token_type_ids=token_types(prompt, pair.ours.config),
        max_new_tokens=32,
        min_new_tokens=32,
        do_sample=False,
        eos_token_id=STOP,
        pad_token_id=256,
        **visual_inputs(prompt),
    )
    result = generate(pair.ours, [prompt], max_new_tokens=32, stop_ids=())[0]
    assert list(result.token_ids) == tokens[0, len(prompt) :].tolist()


def test_tied_and_nested_config(tiny_config: TinyConfig, checkpoint: Path) -> None:
    ours = make_random_model(config=tiny_config(tied=True, nested=True))
    theirs = build_theirs(ours)
    prompt = encode(Processor.from_folder(checkpoint), "mixed")
    assert_parity(ours([prompt])[0], their_logits(theirs, prompt))


@pytest.mark.parametrize(
    "yarn",
    [
        {"factor": 3.0, "original_max_position_embeddings": 262144},
        {"factor": 8.0, "original_max_position_embeddings": 64, "truncate": False},
        {"factor": 2.0, "original_max_position_embeddings": 512, "attention_factor": 1.5},
        {"factor": 4.0, "original_max_position_embeddings": 999, "beta_fast": 9.0, "beta_slow": 2},
        {"factor": 1.0, "original_max_position_embeddings": 512},
    ],
)
def test_yarn_equals_transformers(yarn: dict[str, Any]) -> None:
    text = replace(
        make_tiny_config().text,
        head_dim=128,
        mrope_section=(24, 20, 20),
        rope_theta=5e6,
        yarn=YarnScaling(**yarn),
    )
    rope = {"rope_type": "yarn", "rope_theta": 5e6, **yarn}
    config = transformers.Qwen3VLTextConfig(head_dim=128, rope_parameters=rope)
    theirs, factor = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"](config)
    ours, scale = decoder_frequencies(text)
    assert torch.equal(ours, theirs)
    assert scale == factor
    assert (ours == decoder_frequencies(replace(text, yarn=None))[0]).any()
