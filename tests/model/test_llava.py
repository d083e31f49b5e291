"""LLaVA: parity with transformers, namings, prompts and image processing, refusals."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llava_models import (
    FAMILIES,
    IMAGE,
    NAMINGS,
    SIDE,
    TOKENS,
    llava_config,
    pixels,
    write_llava,
)
from PIL import Image
from reference_model import make_image
from torch import Tensor

from vlpress.model.checkpoint import CheckpointReader
from vlpress.model.config import ModelConfig
from vlpress.model.generation import generate
from vlpress.model.loading import load_model
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.pixel_settings import PixelSettings
from vlpress.model.processing.processor import Processor
from vlpress.model.processing.visual_options import ImageOptions
from vlpress.model.qwen_vl import QwenVL

transformers = pytest.importorskip("transformers", minversion="5.0")

TOLERANCE = 1e-4  # of the largest value
IMAGES = [make_image(100, 60, 0), make_image(64, 130, 1), make_image(56, 56, 2)]
CASES: dict[str, list[Image.Image]] = {"text": [], "one image": IMAGES[:1], "three images": IMAGES}
SILENT = (2, 355)


@dataclass(frozen=True)
class Pair:
    folder: Path
    ours: QwenVL
    theirs: Any
    processor: Processor


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    raw = llava_config(request.param)
    silent = (*SILENT, raw["image_token_index"])
    folder = write_llava(tmp_path_factory.mktemp("llava"), raw, silent=silent)
    theirs, loading = transformers.LlavaForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(loading.values())
    ours = load_model(folder, device="cpu")
    assert ours.config.family == FAMILIES[request.param]
    return Pair(folder, ours, theirs.eval(), Processor.from_folder(folder))


def messages(images: list[Image.Image], text: str = "What is it?") -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def encode(pair: Pair, name: str) -> Prompt:
    return pair.processor.encode(messages(CASES[name], f"What about {name}?"))


def reference_logits(pair: Pair, prompt: Prompt) -> Tensor:
    inputs = {"pixel_values": pixels(prompt)} if prompt.visuals else {}
    with torch.no_grad():
        logits: Tensor = pair.theirs(input_ids=prompt.input_ids[None], **inputs).logits[0]
    return logits


def assert_parity(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= TOLERANCE * float(theirs.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_logits_and_positions(pair: Pair, name: str) -> None:
    prompt = encode(pair, name)
    assert torch.equal(prompt.position_ids, torch.arange(len(prompt)).expand(3, -1))
    reference = reference_logits(pair, prompt)
    assert float((reference.max(-1).values - reference.min(-1).values).min()) >= 1
    assert_parity(pair.ours([prompt])[0], reference)


def test_features_replace_image_tokens_one_to_one(pair: Pair) -> None:
    prompt = encode(pair, "three images")
    assert int((prompt.input_ids == pair.ours.config.image_token_id).sum()) == 3 * TOKENS
    with torch.no_grad():
        reference = pair.theirs.model.get_image_features(pixels(prompt)).pooler_output
        encoded = pair.ours.encode(prompt.visuals)
    for features, expected in zip(encoded, reference, strict=True):
        assert list(features) == ["hidden"]
        assert float(expected.std()) > 0.1
        assert_parity(features["hidden"], expected)


def test_logits_of_a_batch_of_unequal_prompts(pair: Pair) -> None:
    prompts = [encode(pair, name) for name in CASES]
    assert len({len(prompt) for prompt in prompts}) == len(prompts)
    for prompt, logits in zip(prompts, pair.ours(prompts), strict=True):
        assert_parity(logits, reference_logits(pair, prompt))


def test_generation(pair: Pair) -> None:
    prompts = [encode(pair, name) for name in CASES]
    results = generate(pair.ours, prompts, max_new_tokens=16, stop_ids=(), return_logits=True)
    for prompt, result in zip(prompts, results, strict=True):
        inputs = {"pixel_values": pixels(prompt)} if prompt.visuals else {}
        tokens = pair.theirs.generate(
            input_ids=prompt.input_ids[None],
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=SILENT[0],
            pad_token_id=0,
            **inputs,
        )
        new = torch.tensor(result.token_ids)
        assert tokens[0, len(prompt) :].tolist() == new.tolist()
        # Decoding with a cache equals a prefill of the whole.
        whole = Prompt(
            torch.cat([prompt.input_ids, new]),
            torch.arange(len(prompt) + len(new)).expand(3, -1),
            prompt.visuals,
        )
        assert result.logits is not None
        assert_parity(result.logits, reference_logits(pair, whole)[len(prompt) - 1 : -1])
    assert len({result.token_ids for result in results}) == len(results)


@pytest.mark.parametrize("naming", NAMINGS)
def test_all_namings_load(pair: Pair, naming: str, tmp_path: Path) -> None:
    raw = dict(pair.ours.config.raw)
    folder = write_llava(tmp_path / "llava", raw, naming=naming)
    reader = CheckpointReader(folder)
    source = "model.vision_tower.encoder" if naming == "newest" else "vision_tower.vision_model"
    name = "visual.encoder.layers.0.mlp.fc1.weight"
    assert source in reader.source_name(name)
    published = write_llava(tmp_path / "published", raw)
    prompt = encode(pair, "one image")
    expected = load_model(published, device="cpu")([prompt])[0]
    assert torch.equal(load_model(folder, device="cpu")([prompt])[0], expected)


def test_files_of_transformers_load(pair: Pair, tmp_path: Path) -> None:
    pair.theirs.save_pretrained(tmp_path)
    prompt = encode(pair, "one image")
    assert torch.equal(load_model(tmp_path, device="cpu")([prompt])[0], pair.ours([prompt])[0])


@pytest.mark.parametrize("layer", [-1, -3, 2])
def test_feature_layers(layer: int, tmp_path: Path) -> None:
    raw = llava_config(vision_feature_layer=layer)
    folder = write_llava(tmp_path, raw)
    ours = load_model(folder, device="cpu")
    assert ours.config.vision.depth == {-1: 4, -3: 2, 2: 2}[layer]
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(folder)
    pair = Pair(folder, ours, theirs.eval(), Processor.from_folder(folder))
    prompt = encode(pair, "one image")
    assert_parity(ours([prompt])[0], reference_logits(pair, prompt))


def test_tied_head_and_head_size(tmp_path: Path) -> None:
    raw = llava_config(tied=True)
    folder = write_llava(tmp_path, raw)
    ours = load_model(folder, device="cpu")
    assert ours.lm_head is None
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(folder)
    pair = Pair(folder, ours, theirs.eval(), Processor.from_folder(folder))
    prompt = encode(pair, "one image")
    assert_parity(ours([prompt])[0], reference_logits(pair, prompt))


def test_padding_is_no_image_token() -> None:
    config = ModelConfig.from_dict(llava_config())
    assert config.video_token_id is None and config.placeholder_ids == [355]


SIZES: dict[str, dict[str, Any]] = {
    "shortest edge": {"size": {"shortest_edge": SIDE}},
    "larger edge": {"size": {"shortest_edge": 70}},
    "stretched": {"size": {"height": SIDE, "width": SIDE}},
    "number": {"size": SIDE, "crop_size": SIDE},
    "padded": {"do_pad": True, "size": {"shortest_edge": SIDE}},
    "padded, not cut": {"do_pad": True, "size": {"shortest_edge": SIDE}, "do_center_crop": False},
    "other mean": {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]},
}


@pytest.mark.parametrize("name", SIZES)
def test_images_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    settings = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    settings |= SIZES[name]
    kind = "LlavaImageProcessor" if "do_pad" in settings else "CLIPImageProcessor"
    stored = {"image_processor_type": kind, "resample": 3, **settings}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored))
    config = ModelConfig.from_dict(llava_config())
    pixel_settings = PixelSettings.from_folder(tmp_path, config.vision)
    processor = Processor(config, _NoTokenizer(), pixel_settings)
    theirs = getattr(transformers, f"{kind}Pil")(**settings)
    for image in (*IMAGES, make_image(61, 300, 3), make_image(300, 61, 4), make_image(40, 36, 5)):
        visual = processor.image(image)
        expected = theirs(image, return_tensors="pt")["pixel_values"]
        assert visual.grid == (1, 4, 4)
        assert torch.equal(pixels(Prompt(torch.zeros(1), torch.zeros(3, 1), (visual,))), expected)


class _NoTokenizer:
    unk_token_id = bos_token_id = None

    def encode(self, text: str, **options: Any) -> list[int]:
        return []

    def convert_tokens_to_ids(self, token: str) -> None:
        return None


@pytest.mark.parametrize(
    "change, words",
    [
        ({"crop_size": {"height": 48, "width": 48}}, "crop_size"),
        ({"size": {"shortest_edge": 48}}, "size"),
        ({"size": {"height": 56, "width": 48}}, "equal height and width"),
        ({"do_center_crop": False}, "do_center_crop"),
        ({"do_center_crop": "yes"}, "true or false"),
        ({"image_processor_type": "SiglipImageProcessor"}, "CLIPImageProcessor"),
        ({"image_processor_type": "LlavaNextImageProcessor"}, "CLIPImageProcessor"),
        ({"resample": 2}, "resample"),
    ],
)
def test_unusable_image_settings(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    settings = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | change))
    vision = ModelConfig.from_dict(llava_config()).vision
    with pytest.raises(ValueError, match=words):
        PixelSettings.from_folder(tmp_path, vision)


def test_videos_and_sizes_are_refused(pair: Pair) -> None:
    video = {"type": "video", "video": [IMAGES[2], IMAGES[2]], "fps": 1.0}
    with pytest.raises(ValueError, match="reads images only"):
        pair.processor.encode([{"role": "user", "content": [video]}])
    with pytest.raises(ValueError, match="56 x 56 pixels only"):
        pair.processor.image(IMAGES[0], options=ImageOptions(max_pixels=784))
    with pytest.raises(ValueError, match="56 x 56 pixels only"):
        pair.processor.image(IMAGES[0], (784, 3136))
    with pytest.raises(ValueError, match="56 x 56 pixels only"):
        pair.processor.with_max_pixels(12544)
    with pytest.raises(ValueError, match="56 x 56 pixels only"):
        Processor.from_folder(pair.folder, max_pixels=12544)
    assert pair.processor.with_max_pixels(SIDE**2).max_pixels == SIDE**2


def test_tokens_equal_those_of_transformers(pair: Pair) -> None:
    tokenizer = pair.processor.tokenizer
    theirs = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    theirs.image_token, theirs.image_token_id = IMAGE, pair.ours.config.image_token_id
    conversation = [
        *messages(IMAGES[:2], "What is it?"),
        {"role": "assistant", "content": [{"type": "text", "text": "A box."}]},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
    ]
    inputs = theirs.apply_chat_template(
        conversation,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    prompt = pair.processor.encode(conversation)
    assert inputs["input_ids"][0].tolist() == prompt.input_ids.tolist()
    assert torch.equal(inputs["pixel_values"], pixels(prompt))


@pytest.fixture(scope="module")
def vicuna(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    return Processor.from_folder(write_llava(tmp_path_factory.mktemp("vicuna")))


def test_prompt_of_vicuna(vicuna: Processor) -> None:
    one = vicuna.encode(messages(IMAGES[:1]))
    assert one.input_ids[:2].tolist() == [1, 259] and one.input_ids.tolist().count(1) == 1
    text = vicuna.tokenizer.decode(one.input_ids)
    assert text.replace(IMAGE * TOKENS, IMAGE) == f"<s> USER: {IMAGE} \nWhat is it? ASSISTANT:"
    # A text alone is the same as a list with one part.
    plain = vicuna.encode([{"role": "user", "content": "Hello"}])
    listed = vicuna.encode(messages([], "Hello"))
    assert torch.equal(plain.input_ids, listed.input_ids)
    assert vicuna.tokenizer.decode(plain.input_ids) == "<s> USER: Hello ASSISTANT:"


def test_answers_end_with_the_end_of_the_text(vicuna: Processor) -> None:
    prompt = vicuna.encode(messages(IMAGES[:1]), answer="Yes")
    without = vicuna.encode(messages(IMAGES[:1]))
    assert prompt.input_ids[: len(without)].tolist() == without.input_ids.tolist()
    new = prompt.input_ids[len(without) :]
    assert prompt.answer_tokens == len(new) == 5  # space, three letters, end
    assert int(new[-1]) == 2 and vicuna.stop_ids == {2}
    assert vicuna.decode(new) == "Yes"
    generated = vicuna.encode(messages(IMAGES[:1]), answer=f"a {IMAGE}", answer_is_generated=True)
    assert int((generated.input_ids == 355).sum()) == TOKENS


def test_template_of_the_checkpoint_comes_first(tmp_path: Path) -> None:
    folder = write_llava(tmp_path)
    template = (
        "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image>{% else %}[{{ part['text'] }}]{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    processor = Processor.from_folder(folder)
    ids = processor.encode(messages(IMAGES[:1], "Why")).input_ids.tolist()
    assert ids[0] == 1 and ids.count(1) == 1  # the template writes it, and it is not added again
    assert processor.tokenizer.decode(ids).replace(IMAGE * TOKENS, IMAGE) == f"<s>{IMAGE} [Why]"


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model_type": "llava_next"}, "'llava_next' is not supported"),
        ({"model_type": "llava_onevision"}, "'llava_onevision' is not supported"),
        ({"model_type": "llava_qwen2"}, "'llava_qwen2' is not supported"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "SigLIP"),
        ({"vision_config": None}, "LlavaForConditionalGeneration"),
        ({"text_config": {"model_type": "mistral"}}, "llama, qwen2"),
        ({"vision_feature_layer": [-2, -5]}, "vision_feature_layer"),
        ({"vision_feature_layer": 0}, "1 to 4 or -4 to -1"),
        ({"vision_feature_layer": 5}, "1 to 4 or -4 to -1"),
        ({"vision_feature_select_strategy": "full"}, "class token"),
        ({"multimodal_projector_bias": False}, "projector"),
        ({"text_config": {"attention_bias": True}}, "attention_bias"),
        ({"text_config": {"rope_scaling": {"type": "linear", "factor": 2.0}}}, "long-context"),
        (
            {"text_config": {"rope_parameters": {"mrope_section": [8, 4, 4]}}},
            "one position each",
        ),
        ({"vision_config": {"image_size": 60}}, "image_size"),
    ],
)
def test_unsupported_configs(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        ModelConfig.from_dict(llava_config(**changes))
    assert "\n" not in str(error.value)


def test_missing_entries_have_the_defaults_of_transformers() -> None:
    raw = {
        "model_type": "llava",
        "text_config": {"model_type": "llama", "vocab_size": 32064},
        "vision_config": {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14},
    }
    config = ModelConfig.from_dict(raw)
    theirs = transformers.LlavaConfig(**{k: v for k, v in raw.items() if k != "model_type"})
    text, vision = config.text, config.vision
    assert config.image_token_id == theirs.image_token_index
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps"):
        assert getattr(text, name) == getattr(theirs.text_config, name)
    assert text.num_key_value_heads == theirs.text_config.num_key_value_heads
    assert text.max_position_embeddings == theirs.text_config.max_position_embeddings
    assert vision.depth + vision.unused_layers == theirs.vision_config.num_hidden_layers
    assert (vision.hidden_size, vision.num_heads) == (768, theirs.vision_config.num_attention_heads)
    assert vision.norm_eps == theirs.vision_config.layer_norm_eps
    assert np.prod((1, vision.position_side, vision.position_side)) == 576
