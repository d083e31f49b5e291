"""Recipes with `max_pixels`: calibration with smaller images, the written settings, the record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import write_checkpoint_folder

from vlpress.calib.samples.sample import Sample
from vlpress.cli.console import inspect_table
from vlpress.model.processing.processor import Processor
from vlpress.quant import api
from vlpress.quant.checkpoint.loading import open_model
from vlpress.quant.checkpoint.pixel_budget import write_with_max_pixels
from vlpress.quant.config import CalibrationOptions, ModelSettings
from vlpress.quant.driver.pipeline import quantize_, save_quantized
from vlpress.quant.job import Job
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.resolve import Source, encode_samples, sample_processor

AREA = 4 * 784
STEP = {"method": "gptq", "bits": 4, "group_size": 32, "targets": ["model.layers.*"]}


def recipe(**table: Any) -> Recipe:
    return Recipe.from_dict({"name": "test", "step": [STEP], "vision_input": table})


def written(tmp_path: Path, area: int) -> str:
    path = tmp_path / "recipe.toml"
    steps = '[[step]]\nmethod = "gptq"\nbits = 4\ngroup_size = 32\ntargets = ["decoder"]\n'
    path.write_text(f"[vision_input]\nmax_pixels = {area}\n{steps}")
    return str(path)


def test_recipes_state_the_area_with_or_without_a_rule() -> None:
    rule = {"method": "divprune", "keep": 0.5}
    both = recipe(max_pixels=AREA, reduce=rule)
    assert both.to_dict()["vision_input"] == {"max_pixels": AREA, "reduce": rule}
    assert Recipe.from_dict(both.to_dict()) == both
    assert recipe(max_pixels=AREA).vision_input.described() == {"max_pixels": AREA}
    assert recipe(reduce=rule).vision_input.max_pixels is None


@pytest.mark.parametrize("area", [0, 1.5, "784", 2**41])
def test_areas_that_are_none_are_refused(area: object) -> None:
    message = (
        r"recipe: vision_input.max_pixels is .*; allowed: a whole number from 1 to 1099511627776"
    )
    with pytest.raises(ValueError, match=message):
        recipe(max_pixels=area)


def test_areas_that_do_not_fit_the_model_are_refused(checkpoint: Path) -> None:
    least = Processor.from_folder(checkpoint).min_pixels
    source = Source.find(checkpoint, ModelSettings(device="cpu"))
    with pytest.raises(ValueError, match=rf"max_pixels is {least - 1}; allowed: at least {least}"):
        sample_processor(source, recipe(max_pixels=least - 1))
    assert sample_processor(source, recipe(max_pixels=least)).max_pixels == least
    other = Source.find(checkpoint, ModelSettings(device="cpu", max_pixels=9 * 784))
    with pytest.raises(ValueError, match=rf"--max-pixels is {9 * 784}, .* recipe {AREA}"):
        sample_processor(other, recipe(max_pixels=AREA))
    assert sample_processor(other, recipe(max_pixels=9 * 784)).max_pixels == 9 * 784


def test_samples_are_scaled_and_the_original_is_not(checkpoint: Path, tmp_path: Path) -> None:
    source = Source.find(checkpoint, ModelSettings(device="cpu"))
    options = CalibrationOptions(calib_samples=2)
    job, plain = (
        Job.prepare(source, name, options) for name in (written(tmp_path, AREA), "w4a16-g32")
    )
    assert job.processor.max_pixels == plain.processor.max_pixels > AREA
    assert job.samples_as.max_pixels == AREA
    assert sum(job.drawn.tokens) < sum(plain.drawn.tokens)
    assert job.fingerprint()["recipe"]["vision_input"] == {"max_pixels": AREA}


@pytest.fixture(scope="module")
def quantized(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("area")
    api.quantize(
        checkpoint,
        out=folder / "out",
        recipe=written(folder, AREA),
        calib_samples=2,
        device="cpu",
    )
    return folder / "out"


def test_the_checkpoint_states_the_area_everywhere(
    checkpoint: Path, quantized: Path, tmp_path: Path
) -> None:
    before, after = Processor.from_folder(checkpoint), Processor.from_folder(quantized)
    assert (after.min_pixels, after.max_pixels) == (before.min_pixels, AREA)
    assert json.loads((quantized / "vlpress.json").read_text())["max_pixels"] == AREA
    assert f"Images: at most {AREA} pixels" in (quantized / "README.md").read_text()
    inspected = api.inspect_checkpoint(quantized)
    assert inspected["max_pixels"] == AREA
    assert f"images: at most {AREA} pixels" in inspect_table(inspected)
    (tmp_path / "copy").mkdir()
    write_with_max_pixels(quantized, tmp_path / "copy", 9 * 784)
    assert json.loads((tmp_path / "copy" / "vlpress.json").read_text())["max_pixels"] == 9 * 784


def test_in_memory_writes_the_same_settings(tmp_path: Path) -> None:
    source = write_checkpoint_folder(tmp_path / "source")
    model, rule = open_model(source, device="cpu"), recipe(max_pixels=AREA)
    opened = sample_processor(Source.find(source, ModelSettings(device="cpu")), rule)
    samples = [Sample([{"role": "user", "content": "Is it?"}], "no", "one")]
    report = quantize_(model, rule, encode_samples(samples, opened))
    save_quantized(model, report, source, tmp_path / "out")
    assert Processor.from_folder(tmp_path / "out").max_pixels == AREA
