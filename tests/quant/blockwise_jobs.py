"""Blockwise quantization of small checkpoints, for the tests of the driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import small_config, small_model, write_small_checkpoint

from vlpress.common import safetensors_writer
from vlpress.model.carried import CarriedTensors
from vlpress.model.checkpoint import CheckpointReader
from vlpress.model.config import ModelConfig
from vlpress.model.processing.inputs import Prompt
from vlpress.quant.checkpoint.safetensors_folder.shards import checkpoint_folder
from vlpress.quant.checkpoint.saving import save_finished
from vlpress.quant.driver.blockwise import BlockwiseQuantizer
from vlpress.quant.driver.journal import Journal
from vlpress.quant.plan.plan import make_plan
from vlpress.quant.recipe.recipe import Recipe

GPTQ: dict[str, Any] = {"method": "gptq", "bits": 4, "group_size": 32}
RTN: dict[str, Any] = {"method": "rtn", "bits": 8, "group_size": -1}
STATIC = RTN | {"activations": "static"}
TOWER = ["visual.*"]
DECODER = ["model.layers.*"]
BOTH = [GPTQ | {"targets": TOWER}, GPTQ | {"targets": DECODER}]
SMOOTH = {"method": "smoothquant", "alpha": "search"}
STEPS: dict[str, list[dict[str, Any]]] = {
    "rounded": [RTN | {"targets": [*TOWER, *DECODER]}],
    "solved": BOTH,
    "one block": [GPTQ | {"targets": ["model.layers.0.*"]}],
    "head": [GPTQ, GPTQ | {"targets": ["lm_head"]}],
    "smoothed": [
        SMOOTH | {"targets": [*TOWER, *DECODER]},
        RTN | {"activations": "static"} | {"targets": [*TOWER, *DECODER]},
    ],
    "awq": [
        {"method": "awq", "points": 4},
        RTN | {"bits": 4, "group_size": 32, "symmetric": False},
    ],
    "adapted": [GPTQ | {"adapter_rank": 4}],
    "against the float model": [step | {"method": "gptaq"} for step in BOTH],
}


def source_of(tmp_path: Path, family: str = "qwen2_5_vl", **form: Any) -> Path:
    tied = not any("lm_head" in str(step) for step in form.pop("steps", ()))
    raw = small_config(family, tied=tied) | {"torch_dtype": "bfloat16"}
    model = small_model(raw, dtype=torch.bfloat16)
    return write_small_checkpoint(tmp_path / "source", model, **form)


def job(
    source: Path, steps: list[dict[str, Any]], samples: list[Prompt], **more: Any
) -> BlockwiseQuantizer:
    calibration, format = more.pop("calibration", {}), more.pop("format", "auto")
    keys = ("kv_cache", "tie", "vision_input", "recover")
    top: dict[str, Any] = {key: more.pop(key) for key in keys if key in more}
    rule = Recipe.from_dict({"name": "test", "step": steps, "calibration": calibration, **top})
    config = ModelConfig.from_folder(source)
    carried = CarriedTensors.of(config, CheckpointReader(source))
    plan = make_plan(config, rule, format=format, carried=carried)
    return BlockwiseQuantizer(source, rule, plan, samples, "cpu", **more)


def finish(streaming: BlockwiseQuantizer, work: Path, out: Path) -> dict[str, bytes]:
    journal = Journal(work)
    report = streaming.quantize(journal)
    with checkpoint_folder(out, streaming.source) as folder:
        save_finished(journal.tensors(), report, streaming.source, folder)
    return contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


class PowerCutError(Exception):
    pass


def cut_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at a write, with half of the file there; every module writes through one function."""
    left, write = writes, safetensors_writer.write_tensors

    def failing(tensors: Any, path: Path) -> None:
        nonlocal left
        write(tensors, path)
        left -= 1
        if left < 0:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            raise PowerCutError

    for module in (
        "calib.disk_activation_store",
        "quant.driver.journal",
        "quant.checkpoint.safetensors_folder.shards",
    ):
        monkeypatch.setattr(f"vlpress.{module}.write_tensors", failing)
