"""The importance matrix of llama.cpp: sums of squares of the inputs of every layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_files import exportable, quantized
from tiny_models import prompts
from torch import Tensor, nn

from vlpress.calib.observers import Hessian, MeanSquare
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant import imatrix as verb
from vlpress.quant.config import ModelSettings
from vlpress.quant.deployment.gguf.imatrix import write_imatrix
from vlpress.quant.imatrix import imatrix, measure_inputs
from vlpress.quant.resolve import Source


def sums_by_hooks(model: QwenVL) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Sums of squares of the inputs of all linear layers, and numbers of tokens."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for name, module in model.named_modules():
        if type(module).__name__ in ("Linear", "ExpertLinear"):
            assert isinstance(module, nn.Module)

            def hook(_: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
                tokens = inputs[0].reshape(-1, inputs[0].shape[-1])
                sums[name] = sums.get(name, torch.zeros(())) + tokens.double().square().sum(0)
                counts[name] = counts.get(name, 0) + len(tokens)

            module.register_forward_pre_hook(hook)
    with torch.no_grad():
        for prompt in prompts(model.config):
            model([prompt])
    return sums, counts


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    return keys, {tensor.name: tensor.data for tensor in reader.tensors}


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl_moe"])
def test_sums_are_those_of_the_models_inputs(family: str, tmp_path: Path) -> None:
    model, folder = exportable(family, tmp_path / "model", dtype=torch.float32)
    source = Source.find(folder, ModelSettings(device="cpu"))
    samples = prompts(model.config)
    observers = measure_inputs(source, samples, 0, tmp_path, lambda *_: None)
    assert not list(tmp_path.glob(".imatrix-*"))
    entries = write_imatrix(
        tmp_path / "x.gguf", model.config, observers, source="SOURCE", lengths=[30, 50, 20, 21]
    )
    keys, tensors = read(tmp_path / "x.gguf")
    assert keys["general.type"] == "imatrix" and keys["imatrix.datasets"] == ["SOURCE"]
    assert "general.architecture" not in keys
    assert keys["imatrix.chunk_count"] == 4 and keys["imatrix.chunk_size"] == 30
    assert set(tensors) == {f"{name}.{part}" for name in entries for part in ("in_sum2", "counts")}

    sums, counts = sums_by_hooks(model)
    tokens = sum(len(sample) for sample in samples)
    for layer, name in (
        ("model.layers.1.self_attn.k_proj", "blk.1.attn_k.weight"),
        ("model.layers.2.self_attn.o_proj", "blk.2.attn_output.weight"),
        ("lm_head", "output.weight"),
    ):
        assert tensors[f"{name}.in_sum2"].shape == (1, len(sums[layer]))
        assert tensors[f"{name}.counts"].tolist() == [[tokens]]
        assert np.allclose(tensors[f"{name}.in_sum2"][0], sums[layer].numpy(), rtol=1e-4)
    if family == "qwen3_vl_moe":
        measured = tensors["blk.0.ffn_down_exps.weight.in_sum2"]
        assert measured.shape == (6, 96)
        for expert in range(6):
            layer = f"model.layers.0.mlp.experts.{expert}.down_proj"
            assert tensors["blk.0.ffn_down_exps.weight.counts"][expert] == counts.get(layer, 0)
            if layer in sums:
                assert np.allclose(measured[expert], sums[layer].numpy(), rtol=1e-4)


def test_the_mean_square_is_the_diagonal_of_the_hessian() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 12, generator=generator)
    weights = torch.rand(40, generator=generator)
    one, other, hessian = MeanSquare(12), MeanSquare(12), Hessian(12)
    one.update(inputs[:15], weights[:15])
    other.update(inputs[15:], weights[15:])
    one.merge(other)
    hessian.update(inputs, weights)
    assert torch.allclose(one.values, hessian.values.diagonal(), rtol=1e-5)
    assert one.weight == pytest.approx(float(weights.sum()))


def test_the_verb_draws_samples_and_writes_one_file(tmp_path: Path) -> None:
    _, folder = exportable("qwen2_5_vl", tmp_path / "model")
    out = tmp_path / "new" / "imatrix.gguf"
    result = imatrix(model=folder, out=out, calib_samples=2, device="cpu", threads=1)
    keys, tensors = read(out)
    assert [path.name for path in out.parent.iterdir()] == ["imatrix.gguf"]
    assert result["samples"] == keys["imatrix.chunk_count"] == 2
    assert result["entries"] * 2 == len(tensors) == 2 * (3 * 7 + 1)
    assert tensors["blk.0.attn_q.weight.counts"].item() == result["tokens"]
    assert result["bytes"] == out.stat().st_size


def test_unusable_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = exportable("qwen2_vl", tmp_path / "model")
    with pytest.raises(ValueError, match="is a folder"):
        imatrix(model=folder, out=tmp_path)
    rounded = quantized("qwen2_vl", tmp_path / "q", {})
    with pytest.raises(ValueError, match="is quantized"):
        imatrix(model=rounded, out=tmp_path / "x")
    monkeypatch.setattr(verb, "is_installed", lambda: False)
    with pytest.raises(ValueError, match=r"vlpress\[gguf\]"):
        imatrix(model=folder, out=tmp_path / "x")
