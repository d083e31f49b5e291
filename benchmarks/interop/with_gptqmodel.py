"""GPTQModel loads checkpoints of vlpress, and writes checkpoints for vlpress to load.

It expects the tensor names of its version of transformers, so its checkpoints are written from a
source with those names. It rejects checkpoints with the hub's classic names, also Qwen's own.
"""

from __future__ import annotations

import os

# Without a compiler: the comparison is of the layers' own arithmetic.
os.environ["TORCHDYNAMO_DISABLE"] = "1"
# With two cores it uses one thread by default, and then does not quantize.
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
    """Backend and dtype of GPTQModel on a CPU for one kind of checkpoint."""

    backend: BACKEND
    layer: type[torch.nn.Module]
    dtype: torch.dtype


# fp16 and bf16 are exact in float32; AWQ layers round.
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
    """Make its GPTQ layers compute in float32, and make it accept encoded prompts.

    Only float32 layers can be compared bit for bit. Its own processor needs torchvision, which is
    not available for every torch.
    """
    TorchLinear.SUPPORTS_DTYPES.append(torch.float32)
    Qwen2_5_VLQModel.require_load_processor = False
    Qwen2_5_VLQModel.prepare_dataset = lambda self, calibration_dataset, **_: calibration_dataset


def write_and_compare(out: Path, kind: Kind, settings: dict[str, Any]) -> checks.Compared:
    """Write a checkpoint with GPTQModel, then compare both readers."""
    quantize(out, kind, settings)
    yield from compare(out, kind)


def refuse_or_compare(folder: Path) -> checks.Compared:
    """Expect an error for classic names; if there is none any more, compare."""
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
    prompts = checks.prompts(source, seed=checks.CALIBRATION_SEED, answers=True)
    config = QuantizeConfig(group_size=128, offload_to_disk=False, device="cpu", **settings)
    model = GPTQModel.load(str(source), config)
    examples = [checks.model_inputs(prompt) for prompt in prompts]
    model.quantize(examples, batch_size=1, backend=kind.backend)
    model.save(str(out))
    checks.add_side_files(out)


if __name__ == "__main__":
    main()
