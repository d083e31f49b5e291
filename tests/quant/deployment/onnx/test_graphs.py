"""onnxruntime and the host program compute the features and logits of vlpress in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from format_files import checkpoint, recipe
from onnx_exports import (
    LOGITS_TOLERANCE,
    ONNX_FAMILIES,
    arrays,
    export_of,
    features_of,
    float_export,
    graph_of,
    largest_difference,
    logits_of,
)
from onnx_host import Host, position_ids
from tiny_models import prompt, prompts, small_config

from vlpress.model.generation import generate
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.loading import load_quantized

pytestmark = pytest.mark.usefixtures("reference_kernel")

RECIPES: dict[str, list[dict[str, Any]]] = {
    "4 bits": [{}],
    "4 bits asymmetric, a scale per row": [{"symmetric": False, "group_size": -1}],
    "3 bits": [{"bits": 3}],
    "8 bits": [{"bits": 8}],
    "tower": [{}, {"bits": 8, "targets": ["visual.*"], "group_size": -1}],
}


@pytest.fixture(scope="module", params=ONNX_FAMILIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A float model of every family, its export with fixed shapes, and the host program."""
    folder = tmp_path_factory.mktemp(request.param)
    model, out = float_export(folder, request.param, patches=96, prefill=64)
    return model, Host(out)


def test_features_of_images_and_videos(exported: tuple[QwenVL, Host]) -> None:
    model, host = exported
    for each in prompts(model.config)[1:]:
        with torch.no_grad():
            encoded = model.encode(each.visuals)
        actual = features_of(host, each)
        renamed = {name.replace("image_features", "hidden"): v for name, v in actual.items()}
        assert renamed.keys() == encoded[0].keys()
        for name, values in renamed.items():
            expected = torch.cat([of_visual[name] for of_visual in encoded]).numpy()
            assert np.abs(values - expected).max() <= 1e-5 * np.abs(expected).max()


def test_logits_of_texts_images_and_videos(exported: tuple[QwenVL, Host]) -> None:
    model, host = exported
    assert largest_difference(model, host, prompts(model.config)) <= LOGITS_TOLERANCE


def test_pads_after_the_prompt_change_no_logit(exported: tuple[QwenVL, Host]) -> None:
    model, host = exported
    sample = prompts(model.config)[1]
    one, other = logits_of(host, sample), logits_of(host, sample, pads=7)
    assert np.abs(one - other).max() <= 1e-5 * np.abs(one).max()


@pytest.mark.parametrize("prefill", [False, True])
def test_greedy_answers(exported: tuple[QwenVL, Host], prefill: bool) -> None:
    """The graph of fixed length leaves pads in the cache, which the mask excludes."""
    model, host = exported
    for sample in prompts(model.config):
        (expected,) = generate(model, [sample], max_new_tokens=12, stop_ids=frozenset({-1}))
        actual = host.answer(
            *arrays(sample), features_of(host, sample), 12, end={-1}, prefill=prefill
        )
        assert actual == list(expected.token_ids)


def test_the_documented_positions(exported: tuple[QwenVL, Host]) -> None:
    model, host = exported
    for sample in prompts(model.config):
        grids = [visual.grid for visual in sample.visuals]
        seconds = [visual.seconds_per_grid for visual in sample.visuals]
        actual = position_ids(host.about, sample.input_ids.numpy(), grids, seconds)
        assert np.array_equal(actual, sample.position_ids.numpy())


def test_fixed_shapes_are_those_of_the_options(exported: tuple[QwenVL, Host]) -> None:
    model, host = exported
    inputs = {each["name"]: each["shape"] for each in host.about["graphs"]["vision"]["inputs"]}
    assert inputs["pixel_values"] == [96, model.config.vision.patch_dim]
    outputs = {each["name"]: each["shape"] for each in host.about["graphs"]["vision"]["outputs"]}
    assert outputs["image_features"] == [24, 64]
    prefill = host.about["graphs"]["prefill"]
    assert not [each for each in prefill["inputs"] if each["name"].startswith("past")]
    named = {each["name"]: each["shape"] for each in prefill["inputs"] + prefill["outputs"]}
    assert named["inputs_embeds"] == [1, 64, 64] and named["logits"] == [1, 1, 96]


def test_more_patches_than_the_graph_has_are_refused(exported: tuple[QwenVL, Host]) -> None:
    model, host = exported
    with pytest.raises(ValueError, match=r"100 .*96"):
        features_of(host, prompt(model.config, [(1, 10, 10)], 3, 5))


def test_any_number_of_patches(tmp_path: Path) -> None:
    """Windows at the right and bottom edges are smaller."""
    model, out = float_export(tmp_path)
    samples = [prompt(model.config, [(1, 10, 6), (2, 6, 14)], 3, 5)]
    assert largest_difference(model, Host(out), samples) <= LOGITS_TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_floats_are_widened_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    model, out = float_export(tmp_path, dtype=dtype)
    assert largest_difference(model, Host(out), prompts(model.config)) <= LOGITS_TOLERANCE


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(steps, id=name, marks=pytest.mark.slow if name == "8 bits" else ())
        for name, steps in RECIPES.items()
    ],
)
def test_quantized_checkpoints(tmp_path: Path, steps: list[dict[str, Any]]) -> None:
    _, _, source = checkpoint(tmp_path, recipe(*steps), "compressed-tensors")
    out = export_of(source, tmp_path / "onnx")
    operators = {node.op_type for node in graph_of(out, "text").graph.node}
    assert "MatMulNBits" in operators
    model = load_quantized(source, device="cpu", dtype="fp32")
    assert largest_difference(model, Host(out), prompts(model.config)) <= LOGITS_TOLERANCE


def test_a_chunk_continues_the_cache(tmp_path: Path) -> None:
    model, out = float_export(tmp_path)
    host, sample = Host(out), prompts(model.config)[0]
    ids, positions = arrays(sample)
    inputs = host.text_inputs(ids[:8], positions[:, :8], {})
    first = host.run("text", {**inputs, "logits_index": np.array([[7]]), **host._empty()})
    inputs = host.text_inputs(ids[8:], positions[:, 8:], {})
    inputs["attention_mask"] = np.ones((1, len(ids)), np.int64)
    past = {n.replace("present", "past_key_values"): v for n, v in first.items() if n != "logits"}
    index = np.arange(len(ids) - 8)[None]
    second = host.run("text", {**inputs, "logits_index": index, **past})
    expected = logits_of(host, sample)[8:]
    assert np.abs(second["logits"][0] - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_batch_of_prompts_of_different_lengths(tmp_path: Path) -> None:
    model, out = float_export(tmp_path)
    host = Host(out)
    both = [prompt(model.config, [(1, 4, 4)], words, words) for words in (5, 11)]
    longest = max(map(len, both))
    each = [
        host.text_inputs(*arrays(one), features_of(host, one), longest - len(one)) for one in both
    ]
    inputs = {name: np.concatenate([one[name] for one in each]) for name in each[0]}
    inputs["logits_index"] = np.array([[len(one) - 1] for one in both])
    empty = {name: np.repeat(value, 2, axis=0) for name, value in host._empty().items()}
    actual = host.run("text", {**inputs, **empty})["logits"][:, 0]
    for row, one in zip(actual, both, strict=True):
        expected = logits_of(host, one)[-1]
        assert np.abs(row - expected).max() <= 1e-5 * np.abs(expected).max()


def test_an_embedding_of_integers(tmp_path: Path) -> None:
    raw = small_config(tied=False)
    table = {"targets": ["model.embed_tokens"], "bits": 8}
    rule = recipe({}, table, {"targets": ["lm_head"]})
    _, _, source = checkpoint(tmp_path, rule, "compressed-tensors", raw=raw)
    out = export_of(source, tmp_path / "onnx")
    assert [n.op_type for n in graph_of(out, "embedding").graph.node] == ["GatherBlockQuantized"]
    model = load_quantized(source, device="cpu", dtype="fp32")
    assert largest_difference(model, Host(out), prompts(model.config)) <= LOGITS_TOLERANCE
