"""Folders as they are published, saved and exported: the prompts that transformers makes of them.

Transformers' processor also handles videos, for which it needs torchvision; `reference_processor`
says how it is opened without. Ids, grids and pixel values of images are all compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
import torch
from layouts import LAYOUTS, TEMPLATE, TEXT_TEMPLATE, Layout
from PIL import Image
from reference_processor import assert_same_inputs, reference_inputs, reference_processor
from safetensors.torch import load_file, save_file
from tiny_models import new_name

from vlpress.model.config import ModelConfig
from vlpress.model.loading import load_model
from vlpress.model.processing import Processor


def image(width: int, height: int) -> dict[str, Any]:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return {"type": "image", "image": Image.fromarray(pixels)}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": [image(330, 220), text("How many circles are there?")]}],
    [
        {"role": "system", "content": [text("Answer in a word.")]},
        {"role": "user", "content": [text("Compare"), image(40, 30), image(90, 61), text("!\n")]},
        {"role": "assistant", "content": [text("Two, and it's I'd say e\u0301 12 34")]},
        {"role": "user", "content": [text("图片 <|box_start|>(1,2)<|box_end|>  why?")]},
    ],
)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_prompts_are_those_of_transformers(tmp_path: Path, layout: Layout) -> None:
    layout(tmp_path)
    ours, theirs = Processor.from_folder(tmp_path), reference_processor(tmp_path)
    assert (ours.min_pixels, ours.max_pixels) == layouts.BOUNDS
    for messages in CONVERSATIONS:
        assert_same_inputs(ours, theirs, messages)
    grid = ours.image(CONVERSATIONS[0][0]["content"][0]["image"]).grid
    assert grid == (1, 12, 18)  # within the bounds of the file that counts


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_answers_end_where_the_model_was_trained_to(tmp_path: Path, layout: Layout) -> None:
    layout(tmp_path)
    assert Processor.from_folder(tmp_path).stop_ids == {1266, 1268}
    assert ModelConfig.from_folder(tmp_path).image_token_id == 1278


def only_text(folder: Path) -> None:
    layouts.qwen2_5_vl(folder)
    (folder / "chat_template.json").unlink()


def text_before_a_sound_one(folder: Path) -> None:
    layouts.saved_by_4_52(folder)
    layouts.tokenizer_config(folder, TEMPLATE)
    (folder / "chat_template.jinja").write_text(TEXT_TEMPLATE)


@pytest.mark.parametrize(
    ("layout", "file"),
    [(only_text, "tokenizer_config.json"), (text_before_a_sound_one, "chat_template.jinja")],
)
def test_text_only_exports_are_refused(tmp_path: Path, layout: Layout, file: str) -> None:
    layout(tmp_path)
    with pytest.raises(ValueError, match=file) as caught:
        Processor.from_folder(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(TypeError, match="can only concatenate str"):  # at the first question
        reference_inputs(reference_processor(tmp_path), CONVERSATIONS[0])


@pytest.fixture(scope="module")
def stored() -> dict[str, torch.Tensor]:
    return load_file(layouts.TINY / "model.safetensors")


HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("layout", [layouts.qwen2_5_vl, layouts.saved_by_4_52, layouts.saved_by_5])
@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("head", [False, True])
def test_tied_weights(
    tmp_path: Path, stored: dict[str, torch.Tensor], layout: Layout, new: bool, head: bool
) -> None:
    layout(tmp_path)
    tensors = {new_name(name) if new else name: value for name, value in stored.items()}
    save(tmp_path, tensors | ({HEAD: stored[EMBEDDING].clone()} if head else {}))
    model = load_model(tmp_path, device="cpu")
    assert model.lm_head is None and model.dtype == torch.bfloat16
    found = model.state_dict()
    assert found.keys() == stored.keys()
    assert all(torch.equal(found[name], stored[name]) for name in stored)


@pytest.mark.parametrize("layout", [layouts.qwen2_5_vl, layouts.saved_by_4_52, layouts.saved_by_5])
def test_a_head_of_its_own(tmp_path: Path, stored: dict[str, torch.Tensor], layout: Layout) -> None:
    layout(tmp_path)
    layouts.change(tmp_path, "config.json", tie_word_embeddings=False)
    nested = layouts.read(tmp_path, "config.json").get("text_config")
    if nested and "tie_word_embeddings" in nested:
        nested["tie_word_embeddings"] = False
        layouts.change(tmp_path, "config.json", text_config=nested)
    head = stored[EMBEDDING].flip(0).contiguous()
    save(tmp_path, {**stored, HEAD: head})
    assert torch.equal(load_model(tmp_path, device="cpu").state_dict()[HEAD], head)
