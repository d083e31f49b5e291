"""`verify --integer`: all static layers of a checkpoint, a stored table, and unusable input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import vlpress
from vlpress.cli import main

RECIPE = """
[[step]]
method = "rtn"
targets = ["visual.blocks.*", "visual.merger.*", "model.layers.*"]
ignore = ["visual.blocks.*.mlp.down_proj", "model.layers.2.*"]
bits = 8
group_size = -1
activations = "static"

[[step]]
method = "rtn"
targets = ["model.layers.2.*"]
bits = 8
group_size = 64
"""


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main.app, ["verify", *map(str, arguments)])


@pytest.fixture(scope="module")
def static(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with static int8 activations in tower and decoder, but not in all layers."""
    folder = tmp_path_factory.mktemp("static")
    (folder / "recipe.toml").write_text(RECIPE)
    vlpress.quantize(
        checkpoint, folder / "out", recipe=str(folder / "recipe.toml"), calib_samples=1
    )
    return folder / "out"


def test_all_static_layers_agree(static: Path, tmp_path: Path) -> None:
    result = call("--integer", static, "--calib-samples", "1", "-o", tmp_path / "table.json")
    assert result.exit_code == 0, result.stderr
    assert "agree in integer arithmetic with the kernels" in result.stdout
    stored = json.loads((tmp_path / "table.json").read_text())
    names = [layer["name"] for layer in stored["layers"]]
    assert stored["agrees"] and stored["skipped"] == []
    assert {"visual.blocks.0.attn.qkv", "visual.merger.mlp.2", "model.layers.0.mlp.up_proj"} <= {
        *names
    }
    assert stored["others"]["model.layers.2.mlp.up_proj"] == "int8 g64 sym"
    assert stored["others"]["visual.blocks.0.mlp.down_proj"] == "float"
    for layer in stored["layers"]:
        assert layer["output_scale_from"] == "samples"
        assert {len(layer[k]) for k in ("multipliers", "shifts", "bias")} == {layer["out_features"]}
        assert all(2**30 <= m < 2**31 for m in layer["multipliers"])
    # The stored table agrees too; with another multiplier it does not.
    arguments = "--integer", static, "--calib-samples", "1", "--table", tmp_path / "table.json"
    assert call(*arguments).exit_code == 0
    layer = stored["layers"][3]
    layer["multipliers"] = [max(2**30, m * 3 // 4) for m in layer["multipliers"]]
    (tmp_path / "table.json").write_text(json.dumps(stored))
    planted = call(*arguments, "--json")
    assert planted.exit_code == 1
    found = json.loads(planted.stdout)
    assert [each["name"] for each in found["layers"] if not each["agrees"]] == [layer["name"]]
    assert {each["output_scale_from"] for each in found["layers"]} == {"table"}
    del stored["layers"][0]
    (tmp_path / "table.json").write_text(json.dumps(stored))
    missing = call(*arguments)
    assert missing.exit_code == 2 and f"has no constants of {names[0]}" in missing.stderr


def test_unusable_input_is_one_line(static: Path, checkpoint: Path, tmp_path: Path) -> None:
    vlpress.quantize(checkpoint, tmp_path / "w4", recipe="w4a16-rtn")
    for arguments, message in (
        ([static], "no check was named; give --integer"),
        (["--integer", checkpoint], "no quantization found in config.json"),
        (["--integer", tmp_path / "w4"], "(found: float in "),
        (["--integer", static, "-o", tmp_path], "is a folder; give a file"),
        (["--integer", static, "--table", tmp_path / "no.json"], "no.json"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2 and result.stdout == ""
        assert result.stderr.count("\n") == 1 and message in result.stderr, result.stderr


@pytest.mark.slow
def test_all_layers_of_the_built_in_model_agree(tmp_path: Path) -> None:
    vlpress.quantize("tiny", tmp_path / "out", recipe="w8a8-static", calib_samples=16)
    result = vlpress.verify(tmp_path / "out", integer=True, calib_samples=4)
    assert result["agrees"] and len(result["layers"]) == 35
    for layer in result["layers"]:
        assert all(entry["largest_difference"] <= 1 for entry in layer["kernels"].values())
