"""All recipes under examples/ run on the built-in model and match their names."""

import re
from dataclasses import replace
from pathlib import Path

import paths
import pytest
import torch

from vlpress.calib.samples.draw import load_samples
from vlpress.model.loading import load_model, resolve_model
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.quant.config import ModelSettings
from vlpress.quant.driver.pipeline import check_format, quantize_
from vlpress.quant.prepare.context import Context
from vlpress.quant.prepare.running import prepare_checkpoint
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.targets import compressed_layers

OTHER_TOKENS = ("w4a16-pruned-vocabulary",)  # tests/quant/vocabulary has prompts of its tokens
RECIPES = sorted(
    path for path in (paths.EXAMPLES / "recipes").glob("*.toml") if path.stem not in OTHER_TOKENS
)


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    processor = Processor.from_folder(resolve_model("tiny"))
    samples = load_samples(None, n=2, seed=0)
    return [processor.encode(sample.messages, answer=sample.answer) for sample in samples]


def promised(name: str) -> dict[str, tuple[int, bool]]:
    """Return bits, and whether activations are quantized, by part of the model in the name."""
    if name == "w4a16-all":
        four = 4, False
        return {"decoder": four, "tower": four, "embedding": four, "head": (8, False)}
    schemes = {}
    for suffix in ("-2of4", "-adapter", "-svdquant", "-rotated", "-shrunk", "-recovered"):
        name = name.removesuffix(suffix)
    for part in name.split("+"):
        stage, _, scheme = part.rpartition("-")
        match = re.fullmatch(r"w(\d+)a(\d+)", scheme)
        assert match is not None
        schemes[stage or "decoder"] = int(match[1]), int(match[2]) < 16
    return schemes


# The others take minutes in total.
QUICK = ("w4a16",)


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=() if p.stem in QUICK else pytest.mark.slow) for p in RECIPES],
    ids=lambda path: path.stem,
)
def test_runs_on_tiny(path: Path, prompts: list[Prompt], tmp_path: Path) -> None:
    recipe = Recipe.resolve(path)
    assert recipe.name == path.stem
    # Training is tested on its own.
    calibration = replace(recipe.calibration, samples=len(prompts))
    few = replace(recipe, calibration=calibration, recover=None)
    source, original = resolve_model("tiny"), load_model("tiny", device="cpu", dtype="fp32")
    for index, step in enumerate(few.preparations):
        prepared = tmp_path / str(index)
        samples = load_samples(None, n=len(prompts), seed=0)
        prepare_checkpoint(step, source, prepared, Context(few, samples, ModelSettings()))
        source = prepared
    model = load_model(source, device="cpu", dtype="fp32")
    report = quantize_(model, replace(few, preparations=()), prompts)
    check_format(report.plan)
    done: dict[str, set[tuple[int, bool]]] = {}
    for row in report.plan.quantized:
        part = row.spec.part if path.stem == "w4a16-all" or row.spec.part != "tower" else "vision"
        scheme = compressed_layers(model)[row.name].scheme
        done.setdefault(part, set()).add((scheme.bits, scheme.activations != "none"))
    assert done == {part: {scheme} for part, scheme in promised(path.stem).items()}
    with torch.no_grad():
        logits, float_logits = (torch.cat(m(prompts)) for m in (model, original))
    assert 0 < float((logits - float_logits).norm() / float_logits.norm()) < 0.5
