"""The built-in model, and the widths of Qwen2.5-VL-3B with an image of 1280 x 720 pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import with_onnxruntime
from onnx_exports import arrays, export_of, features_of, logits_of
from onnx_host import Host
from tiny_models import make_random_model, make_tiny_config, prompt, write_checkpoint_folder

from vlpress.calib.samples.draw import load_samples
from vlpress.model.loading import load_model, resolve_model
from vlpress.model.processing.processor import Processor

TOLERANCE = 1e-4


def test_the_built_in_model_answers_a_question_about_an_image(tmp_path: Path) -> None:
    source = resolve_model("tiny")
    host, processor = Host(export_of(source, tmp_path / "onnx")), Processor.from_folder(source)
    model = load_model(source, device="cpu", dtype="fp32")
    (sample,) = load_samples(None, n=1, seed=3)
    question = processor.encode(sample.messages)
    with torch.no_grad():
        expected = model([question])[0].numpy()
    assert np.abs(logits_of(host, question) - expected).max() <= TOLERANCE
    tokens = host.answer(*arrays(question), features_of(host, question), 32)
    assert sample.answer is not None and processor.decode(tokens)


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), with_onnxruntime.FIXED])
def test_answers_to_50_questions(tmp_path: Path, words: tuple[str, ...]) -> None:
    rows = list(with_onnxruntime.compare(resolve_model("tiny"), tmp_path / "onnx", words))
    assert [compared for compared, _, passed in rows if not passed] == []
    assert rows[-1][1] == "52 of 52 answers are the same"


@pytest.mark.slow
def test_widths_of_3b_with_an_image_of_1280_x_720_in_5120_patches(tmp_path: Path) -> None:
    """4784 patches and 336 pads make 1280 rows of features, 1196 of them of the image."""
    text = {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "rope_scaling": {"mrope_section": [16, 24, 24], "type": "mrope"},
    }
    vision = {
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "depth": 2,
        "fullatt_block_indexes": [1],
    }
    model = make_random_model(config=make_tiny_config(text=text, vision=vision))
    source = write_checkpoint_folder(tmp_path / "source", model)
    host = Host(export_of(source, tmp_path / "onnx", patches=5120, prefill=2048))
    question = prompt(model.config, [(1, 52, 92)], 12, 1)
    features = features_of(host, question)
    with torch.no_grad():
        expected = model.encode(question.visuals)[0]["hidden"].numpy()
        logits = model([question], last=[1])[0][0].numpy()
    assert features["image_features"].shape == (1196, 2048)
    assert np.abs(features["image_features"] - expected).max() <= TOLERANCE * np.abs(expected).max()
    ids, positions = arrays(question)
    inputs = host.text_inputs(ids, positions, features, 2048 - len(ids))
    outputs = host.run("prefill", {**inputs, "logits_index": np.array([[len(ids) - 1]])})
    assert np.abs(outputs["logits"][0, 0] - logits).max() <= TOLERANCE * np.abs(logits).max()
