"""Parity with transformers 5: same weights, same patches, same positions, same answers.

For videos of Qwen2-VL and Qwen2.5-VL, transformers gets our position ids: since version 4.52 its
positions after a video differ from those of training. The prompt of a Qwen3-VL video has no outer
vision tokens around its frames, as in training and in vLLM; transformers 5 keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from reference_model import (
    CASES,
    FRAMES,
    IMAGES,
    build_reference,
    continued,
    encode,
    reference_logits,
    silence,
    token_types,
    visual_inputs,
)
from tiny_models import (
    FAMILIES,
    TinyConfig,
    make_random_model,
    make_tiny_config,
    write_checkpoint_folder,
)

from vlpress.model.generation import generate
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


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    ours = make_random_model(request.param)
    # Placeholders and the stop token must not be generated.
    silence(ours, [*ours.config.placeholder_ids, STOP])
    folder = write_checkpoint_folder(tmp_path_factory.mktemp("checkpoint"), ours)
    return Pair(ours, build_reference(ours), Processor.from_folder(folder))


def assert_parity(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= TOLERANCE * float(theirs.abs().max())


@pytest.mark.parametrize("image", IMAGES, ids=["wide", "tall", "large"])
@pytest.mark.parametrize("low_high", [(3136, 12544), (78400, 12845056)])
def test_patches(pair: Pair, image: Image.Image, low_high: tuple[int, int]) -> None:
    low, high = low_high
    reference = transformers.Qwen2VLImageProcessorPil(
        min_pixels=low, max_pixels=high, patch_size=pair.ours.config.vision.patch_size
    )(image, return_tensors="pt")
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
        output = pair.theirs.model.visual(patches, grid_thw=grid)
        encoded = pair.ours.encode(prompt.visuals)
    references = {"hidden": output.pooler_output}
    for number, reference in enumerate(getattr(output, "deepstack_features", [])):
        references[f"deepstack.{number}"] = reference
    assert len(references) == 1 + len(pair.ours.config.vision.deepstack_visual_indexes)
    assert list(encoded[0]) == list(references)
    for key, reference in references.items():
        assert float(reference.std()) > 0.1
        assert_parity(torch.cat([each[key] for each in encoded]), reference)


@pytest.mark.parametrize("name", CASES)
def test_logits(pair: Pair, name: str) -> None:
    prompt = encode(pair.processor, name)
    reference = reference_logits(pair.theirs, prompt)
    assert float((reference.max(-1).values - reference.min(-1).values).min()) >= 1
    assert_parity(pair.ours([prompt])[0], reference)


def test_logits_of_a_batch_of_unequal_prompts(pair: Pair) -> None:
    prompts = [encode(pair.processor, name) for name in CASES]
    assert len({len(prompt) for prompt in prompts}) == len(prompts)
    for prompt, logits in zip(prompts, pair.ours(prompts), strict=True):
        assert_parity(logits, reference_logits(pair.theirs, prompt))


@pytest.mark.parametrize("name", CASES)
def test_position_ids(pair: Pair, name: str) -> None:
    if not has_same_positions(pair, name):
        pytest.skip("numbered differently by transformers")
    prompt = encode(pair.processor, name)
    inputs = visual_inputs(prompt)
    grids = {key: value for key, value in inputs.items() if key.endswith("_grid_thw")}
    reference, _ = pair.theirs.model.get_rope_index(
        prompt.input_ids[None], token_types(prompt, pair.ours.config), **grids
    )
    assert torch.equal(prompt.position_ids, reference[:, 0])


def has_same_positions(pair: Pair, name: str) -> bool:
    """Whether transformers numbers the tokens as in training, see the module's docstring."""
    has_video = any(part["type"] == "video" for part in CASES[name])
    return pair.ours.config.vision.separate_frames or not has_video


@pytest.mark.parametrize("frames", [1, 4, 5])
def test_tokens_of_a_video_with_times(pair: Pair, frames: int) -> None:
    if not pair.ours.config.vision.separate_frames:
        pytest.skip("the family writes no times")
    content: list[dict[str, Any]] = [
        {"type": "text", "text": "Before:"},
        {"type": "video", "video": FRAMES[:frames], "fps": 1.5},
        {"type": "text", "text": " after"},
    ]
    messages = [{"role": "user", "content": content}]
    prompt = pair.processor.encode(messages)
    [visual] = prompt.visuals
    reference = transformers.Qwen3VLProcessor
    fake = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
        video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
        _calculate_timestamps=partial(reference._calculate_timestamps, None),
    )
    metadata = SimpleNamespace(fps=1.5, frames_indices=list(range(len(content[1]["video"]))))
    video = reference.replace_video_token(
        fake,
        {"video_grid_thw": torch.tensor([visual.grid]), "video_metadata": [metadata]},
        video_idx=0,
    )
    template = pair.processor.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    text = template.replace("<|vision_start|><|video_pad|><|vision_end|>", video)
    assert "<0.3 seconds>" in text or frames == 1
    assert pair.processor.tokenizer.encode(text) == prompt.input_ids.tolist()


def test_greedy_generation_of_32_tokens(pair: Pair) -> None:
    prompts = [encode(pair.processor, name) for name in CASES]
    results = generate(pair.ours, prompts, max_new_tokens=32, stop_ids=(), return_logits=True)
    for prompt, result in zip(prompts, results, strict=True):
        tokens = torch.tensor(result.token_ids)
        whole = continued(prompt, tokens)
        # Teacher-forced on our tokens: if each is their first choice, they generate the same.
        reference = reference_logits(pair.theirs, whole)[len(prompt) - 1 : -1]
        assert reference.argmax(-1).tolist() == tokens.tolist()
        # KV-cache decoding against their prefill.
        assert result.logits is not None
        assert_parity(result.logits, reference)
    assert len({result.token_ids for result in results}) == len(results)


@pytest.mark.parametrize("name", CASES)
def test_their_own_generate_gives_the_same_tokens(pair: Pair, name: str) -> None:
    if not has_same_positions(pair, name):
        pytest.skip("numbered differently by transformers")
    prompt = encode(pair.processor, name)
    tokens = pair.theirs.generate(
        input_ids=prompt.input_ids[None],
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        mm_token_type_ids=token_types(prompt, pair.ours.config),
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        eos_token_id=STOP,
        pad_token_id=256,
        **visual_inputs(prompt),
    )
    result = generate(pair.ours, [prompt], max_new_tokens=8, stop_ids=())[0]
    assert list(result.token_ids) == tokens[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_tied_and_nested_config(tiny_config: TinyConfig, family: str, tmp_path: Path) -> None:
    ours = make_random_model(config=tiny_config(family, tied=True, nested=True))
    theirs = build_reference(ours)
    folder = write_checkpoint_folder(tmp_path / "checkpoint", ours)
    prompt = encode(Processor.from_folder(folder), "mixed")
    assert_parity(ours([prompt])[0], reference_logits(theirs, prompt))


def test_yarn_of_a_model(tiny_config: TinyConfig, tmp_path: Path) -> None:
    rope = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 3.0,
        "original_max_position_embeddings": 64,
        "mrope_section": [12, 10, 10],
        "mrope_interleaved": True,
    }
    plain = make_random_model("qwen3_vl")
    config = tiny_config("qwen3_vl", nested=True, text={"rope_parameters": rope})
    ours = make_random_model(config=config)
    folder = write_checkpoint_folder(tmp_path / "checkpoint", ours)
    prompt = encode(Processor.from_folder(folder), "mixed")
    logits = ours([prompt])[0]
    assert_parity(logits, reference_logits(build_reference(ours), prompt))
    assert float((logits - plain([prompt])[0]).abs().max()) > 100 * TOLERANCE


SCALED = {"factor": 40.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    "yarn",
    [
        {"factor": 3.0, "original_max_position_embeddings": 262144},
        {"factor": 8.0, "original_max_position_embeddings": 64, "truncate": False},
        {"factor": 2.0, "original_max_position_embeddings": 512, "attention_factor": 1.5},
        {"factor": 4.0, "original_max_position_embeddings": 999, "beta_fast": 9.0, "beta_slow": 2},
        {"factor": 1.0, "original_max_position_embeddings": 512},
        {**SCALED, "mscale": 0.707, "mscale_all_dim": 1.0},
        {**SCALED, "mscale": 2.0},
        {**SCALED, "mscale_all_dim": 2.0},
        {**SCALED, "mscale": 0.7, "mscale_all_dim": 1.0, "attention_factor": 1.25},
        {**SCALED, "factor": 0.5, "mscale": 0.7, "mscale_all_dim": 1.0},
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
