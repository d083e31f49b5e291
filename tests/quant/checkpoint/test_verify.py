"""A finished checkpoint that is read back block by block and says what the loaded model says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import (
    EACH_FAMILY,
    prompt,
    prompts,
    small_config,
    small_model,
    write_small_checkpoint,
)

from vlpress.model.config import ModelConfig
from vlpress.model.generation import Sampling, generate
from vlpress.quant.checkpoint.loading import load_quantized
from vlpress.quant.checkpoint.verify import first_tokens
from vlpress.quant.driver.pipeline import quantize_, save_quantized
from vlpress.quant.recipe.recipe import Recipe

ROUND = {"method": "rtn", "bits": 8, "group_size": -1}
EVERYWHERE = ROUND | {"targets": ["visual.blocks.*", "visual.merger.*", "model.layers.*"]}


def written(tmp_path: Path, family: str, tied: bool, step: dict[str, Any]) -> Path:
    raw = small_config(family, tied=tied) | {"torch_dtype": "float32"}
    model = small_model(raw)
    source = write_small_checkpoint(tmp_path / "source", model)
    report = quantize_(model, Recipe.from_dict({"name": "test", "step": [step]}))
    save_quantized(model, report, source, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("family", EACH_FAMILY)
@pytest.mark.parametrize("tied", [True, False])
def test_it_says_what_the_loaded_model_says(tmp_path: Path, family: str, tied: bool) -> None:
    out = written(tmp_path, family, tied, EVERYWHERE)
    model = load_quantized(out, device="cpu")
    never = {model.config.image_token_id, model.config.video_token_id}
    same = 0
    for question in prompts(ModelConfig.from_folder(out)):
        (answer,) = generate(
            model,
            [question],
            max_new_tokens=4,
            stop_ids=(),
            sampling=Sampling(temperature=0.0, repetition_penalty=1.0),
        )
        if not never & set(answer.token_ids):
            assert first_tokens(out, question, 4, device="cpu") == list(answer.token_ids)
            same += 1
    assert same >= 2


def test_it_ends_where_an_answer_ends(tmp_path: Path) -> None:
    out = written(tmp_path, "qwen2_5_vl", True, EVERYWHERE)
    question = prompt(ModelConfig.from_folder(out), [], 5, 0)
    tokens = first_tokens(out, question, 4, device="cpu")
    assert first_tokens(out, question, 4, stop_ids=tokens[:1], device="cpu") == tokens[:1]


def test_scores_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    out = written(tmp_path, "qwen2_5_vl", True, ROUND)
    file = next(out.glob("*.safetensors"))
    tensors = load_file(file)
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    question = prompt(ModelConfig.from_folder(out), [], 5, 0)
    with pytest.raises(ValueError, match="read back, the checkpoint gives scores that are not fin"):
        first_tokens(out, question, 1, device="cpu")
