"""The comparisons with llama.cpp must detect differences."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import with_llamacpp
from common import gguf_models

from vlpress.model.config import ModelConfig
from vlpress.model.processing.processor import Processor
from vlpress.quant.deployment.gguf.limits import why_not_model
from vlpress.quant.deployment.source import ExportSource


@pytest.mark.parametrize("model", gguf_models.MODELS, ids=lambda model: model.source)
def test_llamacpp_computes_the_models_of_the_rows(model: gguf_models.Model, tmp_path: Path) -> None:
    folder = gguf_models.make_model(model, tmp_path / "model")
    assert why_not_model(ExportSource(folder)) is None
    raw = json.loads((folder / "config.json").read_text())
    assert ModelConfig.from_dict(raw).family == raw["model_type"]


def test_questions_are_images_that_are_not_resized(tmp_path: Path) -> None:
    folder = gguf_models.make_model(gguf_models.MODELS[0], tmp_path / "model")
    prompts = with_llamacpp.write_questions(Processor.from_folder(folder), tmp_path / "q.json")
    rows = json.loads((tmp_path / "q.json").read_text())
    assert list(rows) == list(prompts) and len(rows) == with_llamacpp.QUESTIONS
    grids = [visual.grid for prompt in prompts.values() for visual in prompt.visuals]
    assert grids[:5] == [*[(1, 8, 8)] * 4, (1, 16, 24)]
    for row in rows.values():
        ((kind, text), _) = row
        assert kind == "text" and text.count(with_llamacpp.MARKER) == 1
        assert "<|image_pad|>" not in text


def test_arrays_differ_by_more_than_the_bound() -> None:
    expected = {"a": torch.tensor([1.0, -4.0]), "b": torch.tensor([2.0, 0.0])}
    same = {key: values.numpy() for key, values in expected.items()}
    other = {**same, "b": np.array([2.0, 0.02], np.float32)}
    assert with_llamacpp.compare_arrays("x", expected, same, 1e-6)[2]
    name, result, passed = with_llamacpp.compare_arrays("x", expected, other, 1e-3)
    assert name == "x" and "1.0e-02" in result and not passed
    assert with_llamacpp.compare_arrays("x", expected, other, 1.1e-2)[2]
    broken = {**same, "a": np.array([np.nan, -4.0], np.float32)}
    assert not with_llamacpp.compare_arrays("x", expected, broken, 1.0)[2]


def test_answers_and_tokens_differ() -> None:
    expected = {"a": "one", "b": "two", "c": "three"}
    given = {**expected, "b": "too"}
    assert with_llamacpp.compare_texts(expected, given, 1) == (
        "greedy answers",
        "2/3 equal: 'too' for 'two'",
        True,
    )
    assert not with_llamacpp.compare_texts(expected, given, 0)[2]
