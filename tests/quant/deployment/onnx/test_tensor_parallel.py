"""Shards of the decoder: their weights, and the logits of all ranks together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from format_files import checkpoint, recipe
from onnx_exports import arrays, export_of, features_of, float_export, graph_of, logits_of
from onnx_host import Host
from rank_host import RankHost
from tiny_models import prompts, small_config

from vlpress.quant.checkpoint.formats.format import integers_of
from vlpress.quant.deployment.onnx.tensor_parallel import RankWeights
from vlpress.quant.deployment.source import ExportSource


def differences(whole: Path, shards: Path, host_prompts: list[Any]) -> float:
    """Largest difference between the whole decoder and every rank, of the largest logit."""
    host, ranks, worst = Host(whole), RankHost(shards), 0.0
    for sample in host_prompts:
        expected = logits_of(host, sample)
        inputs = host.text_inputs(*arrays(sample), features_of(host, sample))
        index = np.arange(len(sample))[None]
        for actual in ranks.logits({**inputs, "logits_index": index, **host._empty()}):
            worst = max(worst, float(np.abs(actual[0] - expected).max() / np.abs(expected).max()))
    return worst


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_two_ranks_of_a_float_model(tmp_path: Path, family: str) -> None:
    model, whole = float_export(tmp_path, family)
    shards = export_of(tmp_path / "source", tmp_path / "shards", tp=2)
    assert not (shards / "text.onnx").exists()
    assert differences(whole, shards, prompts(model.config)[1:2]) <= 1e-5


@pytest.mark.parametrize("group_size", [32, pytest.param(-1, marks=pytest.mark.slow)])
def test_two_ranks_of_a_quantized_model(tmp_path: Path, group_size: int) -> None:
    rule = recipe({"group_size": group_size, "symmetric": False})
    model, _, source = checkpoint(tmp_path, rule, "compressed-tensors")
    whole = export_of(source, tmp_path / "whole")
    shards = export_of(source, tmp_path / "shards", tp=2, prefill=16)
    assert differences(whole, shards, prompts(model.config)[1:2]) <= 1e-5
    inputs = {each.name: each for each in graph_of(shards, "text.rank1").graph.input}
    heads = inputs["past_key_values.0.key"].type.tensor_type.shape.dim[1].dim_value
    assert heads == model.config.text.num_key_value_heads // 2
    assert (shards / "prefill.rank1.onnx").exists()


def test_the_parts_together_are_the_weights(tmp_path: Path) -> None:
    _, _, source = checkpoint(tmp_path, recipe(), "gptq")
    whole = ExportSource(source)
    parts = [RankWeights(whole, rank, 2) for rank in range(2)]
    for name, axis in (("self_attn.k_proj", 0), ("self_attn.o_proj", 1), ("mlp.down_proj", 1)):
        layer = f"model.layers.0.{name}"
        actual = [integers_of(part.weight(layer)).dequantize().numpy() for part in parts]  # type: ignore[arg-type]
        expected = integers_of(whole.weight(layer)).dequantize().numpy()  # type: ignore[arg-type]
        assert np.array_equal(np.concatenate(actual, axis), expected)


def test_more_ranks_than_heads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--tp 4 .*2 key/value heads; allowed: 1, 2"):
        float_export(tmp_path, tp=4)


def test_groups_across_ranks_are_refused(tmp_path: Path) -> None:
    raw = small_config(intermediate_size=384)
    rule = recipe({"targets": ["model.layers.*.down_proj"], "group_size": 128})
    _, _, source = checkpoint(tmp_path, rule, "gptq", raw=raw)
    with pytest.raises(ValueError, match=r"--tp 2 .*128 .*mlp.down_proj.*192"):
        export_of(source, tmp_path / "onnx", tp=2)
