"""GPTQModel loads what vlpress wrote, and writes what vlpress must load.

It reads the tensor names of the transformers that it runs with, so what it is given was made from a
source that has those names; a checkpoint under the hub's classic names it refuses, Qwen's own ones
too.
"""

from __future__ import annotations

import os

# The layers' arithmetic is compared, not what a compiler makes of it.
os.environ["TORCHDYNAMO_DISABLE"] = "1"
# On a machine of two cores its own count is one, and then it refuses to quantize.
os.environ["GPTQMODEL_CPU_WORKERS"] = "2"

import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import checks
import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from gptqmodel.models.definitions.qwen2_5_vl import Qwen2_5_VLQModel
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear

from vlpress.model.loading import resolve_model

CLASSIC_NAMES = "Missing required quantized weights"


@dataclass(frozen=True)
class Kind:
    """How GPTQModel computes with a kind of checkpoint on a CPU."""

    backend: BACKEND
    layer: type[torch.nn.Module]
    dtype: torch.dtype


# fp16 and bf16 numbers are float32 numbers too, so nothing is lost there; AWQ layers round theirs.
GPTQ = Kind(BACKEND.GPTQ_TORCH, TorchLinear, torch.float32)
AWQ = Kind(BACKEND.AWQ_TORCH, AwqTorchLinear, torch.float16)
GIVEN = {"gptq": GPTQ, "gptq_v2": GPTQ, "awq": AWQ}
WRITTEN: dict[str, tuple[Kind, dict[str, Any]]] = {
    "gptq w4 g128": (GPTQ, {"bits": 4}),
    "gptq w4 g128 act-order": (GPTQ, {"bits": 4, "desc_act": True, "act_group_aware": False}),
    "gptq w3 g128": (GPTQ, {"bits": 3}),
    "gptq_v2 w4 g128": (GPTQ, {"bits": 4, "format": "gptq_v2"}),
    "gptq_v2 w4 g128 asymmetric": (GPTQ, {"bits": 4, "format": "gptq_v2", "sym": False}),
    "awq w4 g128 asymmetric": (AWQ, {"bits": 4, "method": "awq", "format": "gemm", "sym": False}),
}


def main() -> None:
    """Compare, then write the rows."""
    options = checks.parse(__doc__)
    prepare_library()
    table = checks.Table("GPTQModel", version("gptqmodel"))
    for format, kind in GIVEN.items():
        for folder in checks.made(options.made, f"{format}-newer-names"):
            name = f"{format} {folder.name} by vlpress"
            table.check(name, lambda folder=folder, kind=kind: compare(folder, kind))
    classic = options.made / "gptq" / "w4a16"
    table.check("gptq w4a16 by vlpress, classic names", lambda: refuse_or_compare(classic))
    for name, (kind, settings) in WRITTEN.items():
        out = options.work / name.replace(" ", "-")
        table.check(
            f"{name} by GPTQModel",
            lambda out=out, kind=kind, settings=settings: write_and_compare(out, kind, settings),
        )
    table.write(options.out)


def prepare_library() -> None:
    """Let its GPTQ layers compute in float32, and let it take prompts that are encoded already.

    Layers in float32 are what can be compared bit for bit; its own processor needs torchvision,
    which has no build for every torch.
    """
    TorchLinear.SUPPORTS_DTYPES.append(torch.float32)
    Qwen2_5_VLQModel.require_load_processor = False
    Qwen2_5_VLQModel.prepare_dataset = lambda self, calibration_dataset, **_: calibration_dataset


def write_and_compare(out: Path, kind: Kind, settings: dict[str, Any]) -> checks.Compared:
    """Let GPTQModel write a checkpoint, then compare how both read it."""
    quantize(out, kind, settings)
    yield from compare(out, kind)


def refuse_or_compare(folder: Path) -> checks.Compared:
    """Expect the refusal of classic names; if there is none any more, compare."""
    try:
        yield from compare(folder, GPTQ)
    except ValueError as error:
        if CLASSIC_NAMES not in str(error):
            raise
        yield "loads", "refused, as known: it wants the names of newer libraries", True


def compare(folder: Path, kind: Kind) -> checks.Compared:
    """Load a checkpoint with GPTQModel and compare."""
    loaded = GPTQModel.load(str(folder), device="cpu", backend=kind.backend, dtype=kind.dtype)
    model = loaded.model.eval()
    layers = checks.find_layers(model, kind.layer)
    opened = checks.Opened(layers, checks.transformers_logits(model), kind.dtype)
    yield from checks.compare_checkpoint(folder, opened)


def quantize(out: Path, kind: Kind, settings: dict[str, Any]) -> None:
    """Quantize the built-in model's decoder with GPTQModel."""
    shutil.rmtree(out, ignore_errors=True)
    source = resolve_model("tiny")
    asked = checks.prompts(source, seed=checks.CALIBRATION_SEED, answers=True)
    config = QuantizeConfig(group_size=128, offload_to_disk=False, device="cpu", **settings)
    model = GPTQModel.load(str(source), config)
    examples = [checks.model_inputs(prompt) for prompt in asked]
    model.quantize(examples, batch_size=1, backend=kind.backend)
    model.save(str(out))
    checks.add_side_files(out)


if __name__ == "__main__":
    main()
