"""Graphs for onnxruntime-genai compute angles, segments and windows from its inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx_exports import graph_of
from onnx_host import Array
from tiny_models import (
    TOKEN_ID,
    make_random_model,
    prompt,
    write_checkpoint_folder,
)

from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.api import export

FAMILIES = ("qwen2_vl", "qwen2_5_vl")


class Folder:
    """An export for onnxruntime-genai, called as the runtime does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = json.loads((folder / "genai_config.json").read_text("utf-8"))["model"]

    def run(self, part: str, inputs: dict[str, Array]) -> dict[str, Array]:
        session = onnxruntime.InferenceSession(str(self.folder / self.config[part]["filename"]))
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))

    def features(self, sample: Prompt) -> Array:
        """Features of all images, one call each."""
        rows = [
            self.run(
                "vision",
                {"pixel_values": each.patches.numpy(), "image_grid_thw": np.array([each.grid])},
            )["image_features"]
            for each in sample.visuals
        ]
        return (
            np.concatenate(rows)
            if rows
            else np.zeros((0, self.config["decoder"]["hidden_size"]), np.float32)
        )

    def logits(self, sample: Prompt) -> Array:
        """Logits of the last token, [vocab]."""
        ids = sample.input_ids.numpy()[None]
        features = self.features(sample)
        embeds = self.run("embedding", {"input_ids": ids, "image_features": features})
        decoder = self.config["decoder"]
        shape = (1, decoder["num_key_value_heads"], 0, decoder["head_size"])
        past = {
            decoder["inputs"][f"past_{part}_names"] % layer: np.zeros(shape, np.float32)
            for layer in range(decoder["num_hidden_layers"])
            for part in ("key", "value")
        }
        inputs = {
            **embeds,
            **past,
            "attention_mask": np.ones_like(ids),
            "position_ids": sample.position_ids.numpy()[:, None],
        }
        found: Array = self.run("decoder", inputs)["logits"]
        assert found.shape[:2] == (1, 1)
        last: Array = found[0, 0]
        return last


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    model = make_random_model(request.param)
    source = write_checkpoint_folder(folder / "source", model)
    export(source, out=folder / "out", format="onnx-genai")
    return model, Folder(folder / "out")


def test_features_of_images_of_any_size(exported: tuple[QwenVL, Folder]) -> None:
    """Windows at the right and bottom edges are smaller; a video has several frames."""
    model, folder = exported
    sample = prompt(model.config, [(1, 10, 6), (2, 6, 14), (1, 2, 2), (1, 16, 18)], 3, 5)
    with torch.no_grad():
        expected = torch.cat([each["hidden"] for each in model.encode(sample.visuals)]).numpy()
    assert np.abs(folder.features(sample) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("grids", [[], [(1, 6, 4)], [(1, 4, 8), (1, 10, 6)]])
def test_logits_of_the_last_token(exported: tuple[QwenVL, Folder], grids: Any) -> None:
    model, folder = exported
    sample = prompt(model.config, grids, 3, 5)
    with torch.no_grad():
        expected = model([sample])[0][-1].numpy()
    assert np.abs(folder.logits(sample) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_inputs_have_the_names_of_the_configuration(exported: tuple[QwenVL, Folder]) -> None:
    """The graphs have no other inputs and outputs than those that the runtime passes."""
    _, folder = exported
    for part, file in (("vision", "vision"), ("embedding", "embedding"), ("decoder", "text")):
        graph, config = graph_of(folder.folder, file).graph, folder.config[part]
        for values, names in ((graph.input, config["inputs"]), (graph.output, config["outputs"])):
            allowed = {
                name % layer if "%d" in name else name
                for name in names.values()
                for layer in range(config.get("num_hidden_layers", 1))
            }
            assert {value.name for value in values} == allowed


def test_token_ids_are_those_of_the_checkpoint(exported: tuple[QwenVL, Folder]) -> None:
    _, folder = exported
    assert folder.config["image_token_id"] == TOKEN_ID["<|image_pad|>"]
    assert folder.config["vision_start_token_id"] == TOKEN_ID["<|vision_start|>"]
    assert folder.config["eos_token_id"] == [TOKEN_ID["<|endoftext|>"], TOKEN_ID["<|im_end|>"]]
    assert folder.config["pad_token_id"] == TOKEN_ID["<|endoftext|>"]


def test_images_are_prepared_as_in_the_checkpoint(exported: tuple[QwenVL, Folder]) -> None:
    _, folder = exported
    steps = json.loads((folder.folder / "processor_config.json").read_text("utf-8"))["processor"]
    by_type = {
        step["operation"]["type"]: step["operation"]["attrs"] for step in steps["transforms"]
    }
    processor = Processor.from_folder(folder.folder.parent / "source")
    settings, vision = processor.settings, processor.config.vision
    assert tuple(by_type["Normalize"]["mean"]) == settings.mean
    assert tuple(by_type["Normalize"]["std"]) == settings.std
    assert by_type["Rescale"]["rescale_factor"] == settings.rescale_factor
    assert by_type["Resize"]["min_pixels"] == settings.min_pixels
    assert by_type["Resize"]["max_pixels"] == settings.max_pixels
    for operation in ("Resize", "PatchImage"):
        assert by_type[operation]["patch_size"] == vision.patch_size
        assert by_type[operation]["merge_size"] == vision.spatial_merge_size


def test_deepstack_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint_folder(tmp_path / "source", make_random_model("qwen3_vl"))
    with pytest.raises(ValueError, match=r"qwen3_vl.*DeepStack.*--format onnx"):
        export(source, out=tmp_path / "out", format="onnx-genai")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_tokenizer_is_refused(tmp_path: Path) -> None:
    model = make_random_model("qwen2_vl")
    source = write_checkpoint_folder(tmp_path / "source", model, tokenizer=False)
    with pytest.raises(ValueError, match="tokenizer"):
        export(source, out=tmp_path / "out", format="onnx-genai")
    assert not (tmp_path / "out").exists()


def test_a_pad_token_of_the_template_is_refused(tmp_path: Path) -> None:
    """The runtime masks the pad token in prompts."""
    source = write_checkpoint_folder(tmp_path / "source", make_random_model("qwen2_vl"))
    path = source / "tokenizer_config.json"
    config = {**json.loads(path.read_text("utf-8")), "pad_token": "<|im_end|>"}
    path.write_text(json.dumps(config), "utf-8")
    with pytest.raises(ValueError, match=r"pad_token.*<\|im_end\|>"):
        export(source, out=tmp_path / "out", format="onnx-genai")
