from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from vlpress.quant import resolve
from vlpress.quant.config import CalibrationOptions, ModelSettings
from vlpress.quant.plan.sample_counts import SampleCounts, count_samples
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.resolve import Source, open_samples


@pytest.fixture
def source(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setenv("VLPRESS_CACHE", str(tmp_path / "cache"))
    shutil.copytree(checkpoint, tmp_path / "model")
    return Source.find(tmp_path / "model", ModelSettings(device="cpu"))


def recipe(samples: int) -> Recipe:
    plain = Recipe.resolve("w4a16")
    return replace(plain, calibration=replace(plain.calibration, samples=samples))


def test_counts_of_drawings_are_cached_without_the_tokenizer(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = CalibrationOptions()
    drawn = open_samples(recipe(3), options, source.processor())
    first = count_samples(recipe(3), options, source)
    assert first.tokens == drawn.tokens and first.with_images == 3 and first.warnings
    other = count_samples(recipe(4), options, source)
    assert len(other.tokens) == 4

    def refuse(_: Source) -> None:
        raise AssertionError("the tokenizer is not needed")

    monkeypatch.setattr(resolve.Source, "processor", refuse)
    assert count_samples(recipe(3), options, source) == first


def test_another_tokenizer_or_pixel_bound_is_counted_anew(source: Source) -> None:
    first = count_samples(recipe(2), CalibrationOptions(), source)
    bounded = replace(source, settings=replace(source.settings, max_pixels=56 * 56))
    assert sum(count_samples(recipe(2), CalibrationOptions(), bounded).tokens) < sum(first.tokens)
    folder = Path(source.folder)
    (folder / "tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        count_samples(recipe(2), CalibrationOptions(), source)


def test_samples_in_files_are_read_each_time(source: Source, tmp_path: Path) -> None:
    file = tmp_path / "samples.txt"
    file.write_text("one line of text")
    options = CalibrationOptions(calib=file)
    first = count_samples(recipe(1), options, source)
    assert (len(first.tokens), first.with_images) == (1, 0)
    file.write_text("one line of text that is longer than before")
    assert count_samples(recipe(1), options, source).tokens > first.tokens


def test_rounding_needs_no_samples(source: Source) -> None:
    counts = count_samples(Recipe.resolve("w4a16-rtn"), CalibrationOptions(), source)
    assert counts == SampleCounts([], 0, [])
