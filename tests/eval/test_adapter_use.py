"""Evaluations of a checkpoint with an adapter: with it, and without."""

from __future__ import annotations

from pathlib import Path

from tiny_models import make_random_model, prompts, write_checkpoint_folder

from vlpress.common.options import command_words, option_fields
from vlpress.eval.config import EvaluateOptions
from vlpress.eval.fingerprint import (
    count_part_bytes,
    count_weight_bytes,
    count_weights,
    run_fingerprint,
    setup_differences,
    uses_adapter,
)
from vlpress.model.processing.processor import Processor
from vlpress.quant.config import AdapterOption, ExportOptions, GenerateOptions, ModelSettings
from vlpress.quant.driver.pipeline import quantize_, save_quantized
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.resolve import Source

STEP = {"method": "rtn", "bits": 8, "group_size": -1}


def made(folder: Path, **step: object) -> Path:
    model = make_random_model()
    source = write_checkpoint_folder(folder / "source", model)
    report = quantize_(
        model, Recipe.from_dict({"name": "x", "step": [STEP | step]}), prompts(model.config)
    )
    save_quantized(model, report, source, folder / "quantized")
    return folder / "quantized"


def test_fingerprint_and_sizes_tell_whether_it_is_on(tmp_path: Path) -> None:
    folder = made(tmp_path, adapter_rank=4)
    processor = Processor.from_folder(folder)
    models = {
        off: Source.find(folder, ModelSettings(device="cpu", no_adapter=off)).load()
        for off in (False, True)
    }
    prints = {
        off: run_fingerprint(model, processor, batch_size=1, seed=0, source=folder)
        for off, model in models.items()
    }
    on, off = prints[False]["adapter"], prints[True]["adapter"]
    assert on["rank"] == 4 and on["layers"] == 21 and len(on["sha256"]) == 64
    assert off == "not used"
    assert uses_adapter(prints[False]) and not uses_adapter(prints[True])
    assert setup_differences(prints[False], prints[True]) == []  # models may be compared
    size = (folder / "adapter" / "adapter_model.safetensors").stat().st_size
    parts = {off: sum(count_part_bytes(model, folder).values()) for off, model in models.items()}
    tensors = parts[False] - parts[True]
    files = count_weight_bytes(models[False], folder) - count_weight_bytes(models[True], folder)
    assert tensors == files and 0 < size - tensors < 10_000  # the header of the file
    assert count_weights(models[False]) == count_weights(models[True])
    in_memory, without = (
        run_fingerprint(model, processor, batch_size=1, seed=0, source=None)
        for model in models.values()
    )
    assert in_memory["adapter"] == on and "adapter" not in without and uses_adapter(without)


def test_the_commands_have_one_option_for_it() -> None:
    words = command_words(EvaluateOptions, {"model": "m", "out": "o", "no_adapter": True})
    assert "--no-adapter" in words
    for kind in (EvaluateOptions, GenerateOptions, ExportOptions):
        assert {field.name for field in option_fields(AdapterOption)} <= {
            field.name for field in option_fields(kind)
        }
