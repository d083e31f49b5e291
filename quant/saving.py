"""Writing a quantized model as a checkpoint, beside the original it was made from."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..model.checkpoint import CheckpointReader
from ..model.qwen_vl import QwenVL
from .affine import QuantizedWeight
from .formats import AUTO, choose_format
from .formats.format import Format, Solver, float_tensor
from .formats.writer import Origin, write_checkpoint
from .linear import QuantLinear
from .loading import resolve_folder
from .padding import Padding, pad_tensors
from .plan import Plan
from .report import QuantReport
from .targets import quantized_layers


def check_format(plan: Plan, format: str = AUTO) -> None:
    """Refuse what a format cannot hold; ask before calibrating.

    Raises:
        ValueError: the format is unknown or does not fit the plan.
    """
    choose_format(plan.contents, format)


def save_quantized(
    model: QwenVL,
    report: QuantReport,
    source: str | Path,
    out: str | Path,
    *,
    format: str = AUTO,
    overwrite: bool = False,
) -> None:
    """Write a quantized model as a checkpoint folder, which appears whole or not at all.

    Args:
        model: as `quantize_` left it; its `config.raw` becomes config.json.
        report: what `quantize_` returned. Tensors that it calls changed are written as the model
            has them, those of widths that grew with their zeros.
        source: the checkpoint that the model was loaded from (folder, hub id, ``tiny``); all other
            tensors that were not quantized and all side files come from there.
        out: folder to make.
        format: ``gptq``, ``gptq_v2``, ``compressed-tensors``, ``awq``; ``auto`` takes gptq if it
            can hold the model, else compressed-tensors.
        overwrite: replace an existing folder.

    Raises:
        ValueError: the format does not fit, the model is not what the report says, the source is
            another model, or `out` exists.
    """
    contents = replace(report.plan.contents, config=model.config)
    chosen = choose_format(contents, format)
    layers = quantized_layers(model)
    if odd := set(layers) ^ set(contents.schemes):
        raise ValueError(f"model and report disagree about {min(odd)}; save the report's own model")
    reader = CheckpointReader(resolve_folder(source))
    record = report.to_dict()
    originals = _Originals(model, layers, reader, report.changed, report.plan.padding, chosen)
    write_checkpoint(
        Origin(reader, ("weight",), originals.weight, originals.tensor),
        replace(contents, solver=Solver.from_record(record)),
        chosen,
        Path(out),
        config=model.config.raw,
        record=record,
        overwrite=overwrite,
    )


@dataclass(frozen=True)
class _Originals:
    """Tensors of the float checkpoint as the quantized model has them."""

    model: QwenVL
    layers: Mapping[str, QuantLinear]
    reader: CheckpointReader
    changed: Collection[str]
    padding: tuple[Padding, ...]
    format: Format

    def weight(self, name: str) -> QuantizedWeight:
        """See `Origin.weight`."""
        return self.layers[name].quantized()

    def tensor(self, name: str) -> Tensor | None:
        """See `Origin.tensor`."""
        owner, _, leaf = name.rpartition(".")
        if owner == "lm_head" and self.model.lm_head is None:
            return None  # a copy of the embedding, which readers tie again
        if owner in self.layers:
            return self._bias(name, owner, leaf)
        if name in self.changed:
            parameter = self.model.get_parameter(name).detach()
            return float_tensor(parameter.float(), self.reader.dtype(name))
        stored = self.reader.tensor(name)
        stored = pad_tensors({name: stored}, self.model.config, self.padding).get(name, stored)
        self._check_unchanged(name, stored)
        return stored

    def _bias(self, name: str, owner: str, leaf: str) -> Tensor:
        bias = self.layers[owner].bias
        if leaf != "bias":
            raise ValueError(f"{name} belongs to a quantized layer and cannot be written")
        if bias is None:
            raise ValueError(f"{name} is in the source but not in the model")
        # Layers round their biases to fp16 numbers, so nothing is lost here.
        return float_tensor(bias.float(), self.format.bias_dtype(self.reader.dtype(name)))

    def _check_unchanged(self, name: str, stored: Tensor) -> None:
        """The copied tensor must be what the model computed with during calibration."""
        try:
            parameter = self.model.get_parameter(name)
        except AttributeError:
            return  # no part of the model, such as stored rotary frequencies
        if parameter.is_meta:
            return
        same = parameter.shape == stored.shape and torch.equal(
            stored.to(parameter.device, parameter.dtype), parameter.detach()
        )
        if not same:
            raise ValueError(
                f"{name} differs between the model and its source; give the checkpoint that the "
                "model was loaded from"
            )
