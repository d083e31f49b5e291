"""The library peft loads the adapter of a checkpoint onto transformers' model: equal logits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from reference_model import reference_logits
from torch import Tensor

from vlpress.calib.samples.draw import load_samples
from vlpress.model.loading import load_model, resolve_model
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.quant.driver.pipeline import load_quantized, quantize_, save_quantized
from vlpress.quant.recipe.recipe import Recipe

peft = pytest.importorskip("peft", minversion="0.17")
transformers = pytest.importorskip("transformers", minversion="5.0")

ADAPTER = {"bits": 3, "group_size": 128, "method": "rtn", "adapter_rank": 8}
STEPS = [
    ADAPTER,
    ADAPTER | {"targets": ["visual.blocks.*"], "bits": 8, "group_size": -1},
]


def prompt_of(model: str) -> Prompt:
    processor = Processor.from_folder(resolve_model(model))
    (sample,) = load_samples(None, n=1, seed=0)
    return processor.encode(sample.messages, answer=sample.answer)


def distance(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max() / right.abs().max())


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize("name", ["tiny", pytest.param("tiny3", marks=pytest.mark.slow)])
def test_logits_agree(name: str, tmp_path: Path) -> None:
    """The checkpoint is compressed-tensors, which transformers computes on the CPU as it is."""
    model, prompt, folder = load_model(name, device="cpu"), prompt_of(name), tmp_path / "quantized"
    report = quantize_(model, Recipe.from_dict({"name": name, "step": STEPS}), [])
    save_quantized(model, report, name, folder)
    plain = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    layers = {name for name, module in plain.named_modules() if isinstance(module, torch.nn.Linear)}
    ours, without = (
        load_quantized(folder, device="cpu", dtype="fp32", adapter=adapter)
        for adapter in (True, False)
    )
    with torch.no_grad():
        (expected,), (bare,) = ours([prompt]), without([prompt])
    assert distance(reference_logits(plain, prompt), bare) < 1e-4
    theirs = peft.PeftModel.from_pretrained(plain, folder / "adapter")
    assert distance(reference_logits(theirs, prompt), expected) < 1e-4
    assert distance(bare, expected) > 1e-2
    adapted = {name for name, module in theirs.named_modules() if hasattr(module, "lora_A")}
    adapted = {name.removeprefix("base_model.model.") for name in adapted}
    assert adapted <= layers
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert adapted == set(config["target_modules"])
    assert len(adapted) == len(report.layers)
