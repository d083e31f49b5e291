"""Export in formats of other runtimes: the checkpoint as it is read, and options of formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import exportable, quantized
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlpress.common.progress import Reporter
from vlpress.quant.api import export
from vlpress.quant.config import ExportOptions
from vlpress.quant.deployment.source import ExportSource
from vlpress.quant.deployment.table import DEPLOYMENT_FORMATS


@dataclass(frozen=True)
class Listing:
    """A format that writes the names of the layers."""

    name: str = "listing"
    options: tuple[str, ...] = ()
    reason: str | None = None

    def why_not(self, source: ExportSource, options: ExportOptions) -> str | None:
        return self.reason

    def write(
        self, source: ExportSource, folder: Path, options: ExportOptions, reporter: Reporter
    ) -> Mapping[str, Any]:
        (folder / "layers.txt").write_text("\n".join(source.layers))
        return {"format": self.name}


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEPLOYMENT_FORMATS, "listing", Listing())


def float_weight(source: ExportSource, name: str) -> Tensor:
    weight = source.weight(name)
    assert isinstance(weight, Tensor)
    return weight


@pytest.mark.usefixtures("listing")
def test_an_export_is_described_and_not_repeated(tmp_path: Path) -> None:
    _, folder = exportable("qwen2_vl", tmp_path / "model")
    call: dict[str, Any] = {"checkpoint": folder, "out": tmp_path / "out", "format": "listing"}
    described = export(**call)
    assert described["export"] == str(tmp_path / "out") and list(described["files"]) == [
        "layers.txt"
    ]
    before = (tmp_path / "out" / "layers.txt").stat().st_mtime_ns
    assert export(**call) == described
    assert (tmp_path / "out" / "layers.txt").stat().st_mtime_ns == before
    assert export(**call, fresh=True) == described
    assert (tmp_path / "out" / "layers.txt").stat().st_mtime_ns > before


def test_a_format_that_does_not_fit_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = exportable("qwen2_vl", tmp_path / "model")
    monkeypatch.setitem(DEPLOYMENT_FORMATS, "listing", Listing(reason="it has blue layers"))
    with pytest.raises(ValueError, match="exported as listing: it has blue layers"):
        export(checkpoint=folder, out=tmp_path / "out", format="listing")
    monkeypatch.setitem(DEPLOYMENT_FORMATS, "listing", Listing())
    with pytest.raises(ValueError, match=r"--float-type .*listing; allowed: none"):
        export(checkpoint=folder, out=tmp_path / "out", format="listing", float_type="f32")
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.norm\.weight is missing"):
        export(checkpoint=folder, out=tmp_path / "out", format="listing")
    assert not (tmp_path / "out").exists()


def test_weights_of_a_float_checkpoint(tmp_path: Path) -> None:
    model, folder = exportable("qwen3_vl_moe", tmp_path / "model")
    source = ExportSource(folder)
    source.check()
    assert not source.schemes
    modules = dict(model.named_modules())
    for name in source.layers:
        assert torch.equal(float_weight(source, name), modules[name].weight), name
    assert set(source.parameters) == set(source.reader.names())


def test_weights_of_single_experts(tmp_path: Path) -> None:
    """Other tools store the weight of every expert under a name of its own."""
    _, folder = exportable("qwen3_vl_moe", tmp_path / "model")
    source, weights = ExportSource(folder), load_file(folder / "model.safetensors")
    expected = {name: float_weight(source, name).clone() for name in source.layers}
    path = "model.language_model.layers.0.mlp.experts"
    experts = {name: spec for name, spec in source.layers.items() if ".0.mlp.experts." in name}
    for tensor in ("gate_up_proj", "down_proj"):
        weights.pop(f"{path}.{tensor}")
    for name in experts:
        weights[name.replace("model.", "model.language_model.", 1) + ".weight"] = expected[
            name
        ].contiguous()
    save_file(weights, folder / "model.safetensors")
    single = ExportSource(folder)
    single.check()
    for name in experts:
        assert single.float_name(name) == f"{name}.weight"
        assert torch.equal(float_weight(single, name), expected[name])


def test_weights_of_a_quantized_checkpoint(tmp_path: Path) -> None:
    step = {"targets": ["model.layers.0.*"]}
    source = ExportSource(quantized("qwen2_5_vl", tmp_path, step, tied=True))
    source.check()
    weight = source.weight("model.layers.0.self_attn.q_proj")
    assert not isinstance(weight, Tensor) and weight.scheme.label == "int4 g32 sym"
    kept = float_weight(source, "model.layers.1.self_attn.q_proj")
    assert torch.equal(kept, source.tensor("model.layers.1.self_attn.q_proj.weight"))
    assert "lm_head" not in source.layers
