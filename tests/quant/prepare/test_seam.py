"""Preparations of a recipe: from the source to the checkpoint that is quantized, or written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import prompts
from toy_preparation import CutStep

import vlpress
from vlpress.cli.console import inspect_table, plan_table
from vlpress.model.checkpoint import CheckpointReader
from vlpress.model.config import ModelConfig
from vlpress.model.loading import load_model
from vlpress.quant.driver.blockwise import BlockwiseQuantizer
from vlpress.quant.driver.pipeline import quantize_
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.steps.table import PREPARATIONS

CUT = '[[step]]\nmethod = "cut"\nwidth = {}\n'
RTN = '[[step]]\nmethod = "rtn"\nbits = 4\ngroup_size = 32\n'
TWICE = CUT.format(192) + CUT.format(128) + RTN
WORK = ".out.vlpress-work"


@pytest.fixture(autouse=True, scope="module")
def toy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PREPARATIONS, "cut", CutStep)
        yield


@pytest.fixture(scope="module")
def twice(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the recipe of two preparations and a step that quantizes, and its result."""
    folder = tmp_path_factory.mktemp("twice")
    quantize(checkpoint, folder, TWICE)
    return folder


def write(folder: Path, text: str) -> str:
    path = folder / "recipe.toml"
    path.write_text(text)
    return str(path)


def quantize(checkpoint: Path, folder: Path, text: str, **options: Any) -> dict[str, Any]:
    recipe = write(folder, text)
    return vlpress.quantize(
        checkpoint, folder / "out", recipe=recipe, device="cpu", calib_samples=2, **options
    )


def test_recipes_with_preparations(tmp_path: Path) -> None:
    recipe = Recipe.resolve(write(tmp_path, CUT.format(128) + RTN))
    assert recipe.preparations == (CutStep(128),) and not recipe.is_float
    assert recipe.needs_samples and not recipe.needs_calibration
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    alone = Recipe.resolve(write(tmp_path, CUT.format(128)))
    assert alone.is_float and Recipe.from_dict(alone.to_dict()) == alone


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RTN + CUT.format(8), "cut comes after rtn, but changes the weights that rtn quantizes"),
        ('[[step]]\nmethod = "awq"\n' + CUT.format(8) + RTN, "cut comes after awq, .* scales"),
        (CUT.format(8) + '[[step]]\nmethod = "awq"\n', "awq alone quantizes nothing; add a step"),
        ("tie = false\n" + CUT.format(8), "tie is given, but cut alone quantizes nothing; remove"),
        ("tp = 2\n" + CUT.format(8), "tp is given"),
        ("[vision_input]\nmax_pixels = 99999\n" + CUT.format(8), "vision_input is given"),
        (CUT.format(8) + "targets = ['*']\n", "unknown key 'targets'; allowed: method, width"),
    ],
)
def test_rejects(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Recipe.resolve(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_plan_knows_the_prepared_shapes(checkpoint: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path, TWICE)
    plan = vlpress.plan(checkpoint, recipe=recipe, device="cpu", calib_samples=2)
    first, second = plan["preparations"]
    plain = vlpress.plan(checkpoint, recipe="w4a16-g32", device="cpu", calib_samples=2)
    layers, hidden, itemsize = 3, 128, 4
    step = 64 * 3 * layers * hidden * itemsize
    assert first["bytes_before"] == plan["base_bytes"] == plain["base_bytes"]
    assert first["bytes_before"] - first["bytes_after"] == step
    assert first["bytes_after"] == second["bytes_before"] == second["bytes_after"] + step
    rows = {row["name"]: row for row in plan["rows"]}
    down = rows["model.layers.0.mlp.down_proj"]
    assert (down["in_features"], down["fate"]) == (128, "rtn int4 g32 sym")
    assert plan["candidate_bytes"] < plain["candidate_bytes"]
    disk = plan["estimate"]["scratch_bytes"] - plain["estimate"]["scratch_bytes"]
    assert disk < first["bytes_after"] + second["bytes_after"]
    shown = " ".join(plan_table(plan | {"evaluation": None}).split())
    assert "first, cut: MLPs 256 -> 192 wide; tensors: " in shown


def test_the_prepared_checkpoint_is_quantized(checkpoint: Path, twice: Path) -> None:
    out, recipe = twice / "out", str(twice / "recipe.toml")
    result = vlpress.inspect(out)
    assert [entry["width"] for entry in result["preparations"]] == [192, 128]
    assert all(entry["tokens"] > 0 for entry in result["preparations"])
    assert ModelConfig.from_folder(out).text.intermediate_size == 128
    planned = vlpress.plan(checkpoint, recipe=recipe, device="cpu", calib_samples=2)
    assert result["bytes"] == planned["candidate_bytes"]
    name = "model.layers.0.input_layernorm.weight"
    before, after = CheckpointReader(checkpoint).tensor(name), CheckpointReader(out).tensor(name)
    assert torch.equal(before, after)
    assert {path.name for path in twice.iterdir()} == {"out", "recipe.toml"}
    options: dict[str, Any] = {"recipe": recipe, "device": "cpu", "calib_samples": 2}
    assert vlpress.quantize(checkpoint, out, **options) == result


def test_preparations_alone_write_a_float_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    result = quantize(checkpoint, tmp_path, CUT.format(128))
    out = tmp_path / "out"
    assert (result["format"], result["layers"]) == ("float", [])
    planned = vlpress.plan(
        checkpoint, recipe=str(tmp_path / "recipe.toml"), device="cpu", calib_samples=2
    )
    assert planned["format"] == "float" and planned["engines"] == []
    assert result["bytes"] == planned["candidate_bytes"] < planned["base_bytes"]
    source, reader = CheckpointReader(checkpoint), CheckpointReader(out)
    assert reader.names() == source.names()
    for name in reader.names():
        before, after = source.tensor(name), reader.tensor(name)
        assert torch.equal(before[tuple(map(slice, after.shape))], after)
    for side in ("tokenizer.json", "preprocessor_config.json", "generation_config.json"):
        assert (out / side).read_bytes() == (checkpoint / side).read_bytes()
    record = json.loads((out / "vlpress.json").read_text())
    assert record["preparations"][0]["method"] == "cut" and record["layers"] == []
    assert "nothing is quantized" in (out / "README.md").read_text()
    model = load_model(out, device="cpu")
    assert model.get_parameter("model.layers.0.mlp.down_proj.weight").shape == (128, 128)
    assert "prepared before: cut" in inspect_table(result)


def test_an_interrupted_job_repeats_no_preparation(
    checkpoint: Path, twice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    prepare = CutStep.prepare

    def counted(self: CutStep, *arguments: Any) -> Any:
        runs.append(self.width)
        return prepare(self, *arguments)

    monkeypatch.setattr(CutStep, "prepare", counted)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BlockwiseQuantizer, "quantize", stop)
        with pytest.raises(KeyboardInterrupt):
            quantize(checkpoint, tmp_path, TWICE)
    prepared = tmp_path / WORK / "prepared"
    assert not (tmp_path / "out").exists() and runs == [192, 128]
    assert not (prepared / "00" / "checkpoint").exists() and (prepared / "01").is_dir()
    with pytest.raises(ValueError, match="other work"):
        quantize(checkpoint, tmp_path, TWICE.replace("128", "64"))
    quantize(checkpoint, tmp_path, TWICE)
    assert runs == [192, 128]
    for file in (twice / "out").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_refusals(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cut: width is 300; allowed: less than 256"):
        quantize(checkpoint, tmp_path, CUT.format(300) + RTN)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="format is 'gptq', but the recipe quantizes nothing"):
        quantize(checkpoint, tmp_path, CUT.format(128), format="gptq")
    recipe = Recipe.resolve(write(tmp_path, CUT.format(128) + RTN))
    model = load_model(checkpoint, device="cpu")
    with pytest.raises(ValueError, match="cut changes the whole checkpoint, not a model in memory"):
        quantize_(model, recipe, prompts(model.config))
