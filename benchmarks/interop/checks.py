"""Comparisons with an engine, the same for all: layers bit for bit, then the model's logits.

An engine's layer is inspected through its own forward pass only. With the identity matrix as input
and scales of one it returns q - z, and with integers of zero too, -z. Hence nothing here unpacks
weights in place of the engine.

Letters: N = out_features, K = in_features.
"""

from __future__ import annotations

import argparse
import json
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vlpress import load_quantized
from vlpress.calib.samples.draw import load_samples
from vlpress.model.checkpoint import canonical_name
from vlpress.model.families import SIDE_FILES
from vlpress.model.loading import resolve_model
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.runtime.linear import QuantLinear
from vlpress.quant.targets import quantized_layers

CALIBRATION_SEED, COMPARISON_SEED = 1, 2
PROMPTS = 8
# Tolerance for another order of summation, relative to the largest logit, by dtype of both sides.
LOGITS_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}

Compared = Iterator[tuple[str, str, bool]]
"""A comparison, its result, and whether it passes."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    engine: str
    version: str
    format: str
    compared: str
    result: str
    passed: bool


@dataclass(frozen=True)
class Opened:
    """A checkpoint loaded by an engine."""

    layers: Mapping[str, Any]
    """Quantized layers under the names of the hub."""
    logits: Callable[[Prompt], Tensor]
    """float32 `[tokens, vocab]`."""
    dtype: torch.dtype = torch.float32
    """Dtype of its computation."""


@dataclass
class Table:
    """Rows of one engine."""

    engine: str
    version: str
    rows: list[Row] = field(default_factory=list)

    def add(self, format: str, compared: str, result: str, passed: bool) -> None:
        """Add a comparison and print it."""
        self.rows.append(Row(self.engine, self.version, format, compared, result, passed))
        print(f"{'pass' if passed else 'FAIL'}  {format}: {compared}: {result}", flush=True)

    def check(self, format: str, make: Callable[[], Compared]) -> None:
        """Add all comparisons of one checkpoint; an exception of the engine is a failed row."""
        try:
            for compared, result, passed in make():
                self.add(format, compared, result, passed)
        except Exception as error:  # engines raise arbitrary exceptions, which belong in the table
            traceback.print_exc()
            line = str(error).strip().splitlines()
            message = line[0] if line else "no message"
            self.add(format, "loads", f"{type(error).__name__}: {message}", False)

    def write(self, path: Path) -> None:
        """Write the rows as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps([asdict(row) for row in self.rows], indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")


def parse(description: str | None) -> argparse.Namespace:
    """Parse the command line shared by all engine scripts."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--made", type=Path, required=True, help="checkpoints, FORMAT/RECIPE each")
    parser.add_argument("--work", type=Path, required=True, help="where the engine may write")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the rows")
    parser.add_argument("--model", help="rows of this built-in model (default those of the others)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return options


def made(folder: Path, format: str) -> list[Path]:
    """Checkpoints of one format written by vlpress."""
    return sorted((folder / format).iterdir())


def add_side_files(out: Path) -> None:
    """Copy missing tokenizer and processor files into a checkpoint written by an engine."""
    for name in SIDE_FILES:
        source, target = resolve_model("tiny") / name, out / name
        if source.is_file() and not target.exists():
            shutil.copyfile(source, target)


def prompts(
    folder: Path, *, seed: int, number: int = PROMPTS, answers: bool = False
) -> list[Prompt]:
    """Synthetic questions about images, tokenized with the files of a checkpoint folder."""
    processor = Processor.from_folder(folder)
    return [
        processor.encode(sample.messages, answer=sample.answer if answers else None)
        for sample in load_samples(None, n=number, seed=seed)
    ]


def model_inputs(prompt: Prompt, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A prompt with images as keyword arguments of a transformers model, a batch of one.

    Position ids are those of vlpress, because versions of transformers count them differently.
    """
    return {
        "input_ids": prompt.input_ids[None],
        "attention_mask": torch.ones_like(prompt.input_ids[None]),
        "position_ids": prompt.position_ids[:, None],
        "pixel_values": torch.cat([visual.patches for visual in prompt.visuals]).to(dtype),
        "image_grid_thw": torch.tensor([visual.grid for visual in prompt.visuals]),
    }


def find_layers(model: nn.Module, kind: type[nn.Module]) -> dict[str, nn.Module]:
    """Modules of a type, by their names on the hub."""
    return {
        canonical_name(name): module
        for name, module in model.named_modules()
        if isinstance(module, kind)
    }


def compare_checkpoint(folder: Path, opened: Opened) -> Compared:
    """Compare layers and logits with those of vlpress for the same folder."""
    model = load_quantized(folder, device="cpu", dtype=opened.dtype)
    with torch.inference_mode():
        yield from compare_layers(quantized_layers(model), opened)
        yield compare_logits(model, opened, prompts(folder, seed=COMPARISON_SEED))


def compare_layers(layers: Mapping[str, QuantLinear], opened: Opened) -> Compared:
    """Integers, zero points, scales and one forward pass of every layer."""
    if odd := sorted(layers.keys() ^ opened.layers.keys()):
        where = "here" if odd[0] in layers else "there"
        yield "quantized layers", f"{odd[0]} is quantized only {where}", False
        return
    differing: dict[str, list[str]] = {
        "integers": [],
        "zero points": [],
        "scales bit for bit": [],
        f"a forward pass of each layer in {_name(opened.dtype)} bit for bit": [],
    }
    for name, layer in layers.items():
        same = compare_layer(layer, opened.layers[name], opened.dtype)
        for compared, equal in zip(differing, same, strict=True):
            if not equal:
                differing[compared].append(name)
    for compared, names in differing.items():
        result = f"differ in {len(names)}, first {names[0]}" if names else "equal"
        yield compared, f"{len(layers)} layers: {result}", not names


def compare_layer(
    layer: QuantLinear, module: Any, dtype: torch.dtype
) -> tuple[bool, bool, bool, bool]:
    """Whether integers, zero points, scales and outputs are equal.

    Args:
        layer: layer loaded by vlpress.
        module: an engine's module with buffers `qweight`, `scales` `[G, N]` and `bias` or None.
        dtype: dtype of the inputs.
    """
    weight = layer.quantized()
    columns = weight.column_groups().long()
    eye = torch.eye(weight.in_features, dtype=dtype)
    bare = {"scales": torch.ones_like(module.scales)}
    if module.bias is not None:
        bare["bias"] = torch.zeros_like(module.bias)
    zero_points = -functional_call(module, {**bare, "qweight": module.qweight * 0}, (eye,))
    integers = functional_call(module, bare, (eye,)) + zero_points
    generator = torch.Generator().manual_seed(weight.in_features)
    x = torch.randn(16, weight.in_features, generator=generator).to(dtype)
    # With the strides of the engines: other strides would sum in another order.
    expected = torch.matmul(x, weight.dequantize(dtype).t().contiguous())
    if layer.bias is not None:
        expected = expected + layer.bias
    return (
        torch.equal(integers, weight.integers.t().to(dtype)),
        torch.equal(zero_points, weight.zero_points[:, columns].t().to(dtype)),
        torch.equal(module.scales.float(), weight.scales.t()),
        torch.equal(module(x), expected),
    )


def compare_logits(
    model: QwenVL, opened: Opened, prompts: Sequence[Prompt]
) -> tuple[str, str, bool]:
    """Largest difference of the logits, relative to the largest logit."""
    worst = 0.0
    for prompt in prompts:
        expected = opened.logits(prompt)
        difference = (model([prompt])[0] - expected).abs().max() / expected.abs().max()
        worst = max(worst, float(difference.nan_to_num(torch.inf)))
    return (
        f"logits of the model in {_name(opened.dtype)}",
        f"{len(prompts)} prompts: largest difference {worst:.1e} of the largest logit",
        worst <= LOGITS_TOLERANCE[opened.dtype],
    )


def transformers_logits(model: Any) -> Callable[[Prompt], Tensor]:
    """Function that computes the logits of a model with transformers' interface."""

    def ask(prompt: Prompt) -> Tensor:
        logits: Tensor = model(**model_inputs(prompt, model.dtype)).logits[0]
        return logits.float()

    return ask


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
