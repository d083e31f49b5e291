"""The verbs `quantize`, `plan`, `export` and `inspect` as functions."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import vlpress
from vlpress.common.output_dir import sole_use
from vlpress.quant import config
from vlpress.quant.checkpoint.formats import table
from vlpress.quant.job import DRAWINGS


@pytest.fixture(scope="module")
def quantized(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "int8"
    layers = vlpress.quantize(checkpoint, out, recipe="w8a16-rtn", device="cpu")["layers"]
    assert {layer["bits"] for layer in layers} == {8}
    return out


def test_a_finished_checkpoint_is_returned_and_another_one_refused(
    checkpoint: Path, quantized: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = quantized / "model.safetensors"
    written = weights.stat().st_mtime_ns
    again = vlpress.quantize(checkpoint, quantized, recipe="w8a16-rtn", device="cpu")
    assert again == vlpress.inspect(quantized)
    assert weights.stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"recipe\.name: w8a16-rtn -> w3a16-rtn"):
        vlpress.quantize(checkpoint, str(quantized), recipe="w3a16-rtn", device="cpu")
    with sole_use(quantized), pytest.raises(ValueError, match="in use by another vlpress"):
        vlpress.quantize(checkpoint, quantized, recipe="w8a16-rtn", device="cpu")
    assert capfd.readouterr() == ("", "")


def test_warnings_are_logged_or_shown(
    checkpoint: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = vlpress.plan(checkpoint, calib_samples=2, device="cpu")
    assert plan["estimate"]["samples"] == 2
    assert [(r.name, r.levelno, r.message) for r in caplog.records] == [
        ("vlpress", logging.WARNING, DRAWINGS)
    ]
    caplog.clear()
    vlpress.plan(checkpoint, calib_samples=2, device="cpu", progress=True)
    assert not caplog.records and f"WARNING: {DRAWINGS}" in capfd.readouterr().err
    assert not logging.getLogger("vlpress").handlers


def test_an_export_holds_the_same_layers(quantized: Path, tmp_path: Path) -> None:
    exported = vlpress.export(quantized, tmp_path / "ct", format="compressed-tensors")
    assert exported["format"] == "compressed-tensors"
    names = [layer["name"] for layer in vlpress.inspect(quantized)["layers"]]
    assert sorted(layer["name"] for layer in exported["layers"]) == sorted(names)
    with pytest.raises(TypeError, match="format"):
        vlpress.export(quantized, tmp_path / "x")  # type: ignore[call-arg]


def test_a_quantized_model_is_not_quantized_again(quantized: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is quantized already"):
        vlpress.quantize(quantized, tmp_path / "again", recipe="w8a16-rtn")
    with pytest.raises(ValueError, match="is quantized already"):
        vlpress.plan(quantized)
    assert not (tmp_path / "again").exists()


def test_names_of_formats_in_options_are_those_that_can_be_written() -> None:
    assert set(config.FORMATS) == set(table.FORMATS)
