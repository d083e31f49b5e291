"""Writing a quantized model as a checkpoint, beside the original it was made from."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ...common.lazy_tensor import LazyTensor
from ...model.checkpoint import CheckpointReader
from ...model.config import ModelConfig
from ...model.loading import HEAD
from ...model.qwen_vl import QwenVL
from ..driver.padding import Padding, pad_tensors, padded_shapes
from ..driver.report import QuantReport
from ..plan.plan import Plan
from ..runtime.linear import QuantLinear
from ..targets import quantized_layers
from .formats import AUTO, choose_format
from .formats.format import Contents, Format, Solver, float_tensor
from .formats.writer import Origin, computing_dtype, encode_layer, write_checkpoint
from .loading import resolve_folder


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
    originals = Originals(model, layers, reader, report.changed, report.plan.padding, chosen)
    origin = Origin(reader, ("weight",), originals.encoded, originals.tensor)
    _write(origin, report, contents, chosen, Path(out), overwrite=overwrite)


def save_finished(
    done: Mapping[str, LazyTensor], report: QuantReport, source: Path, out: Path
) -> None:
    """Write a checkpoint of which everything that is not the source's lies in files already.

    Args:
        done: what `Originals.all` gave of every block, by name.
        report: what was done.
        source: folder of the float checkpoint.
        out: folder to make, which appears whole or not at all.

    Raises:
        ValueError: `out` exists.
    """
    reader = CheckpointReader(source)
    contents = report.plan.contents
    finished = _Finished(done, reader, contents.config, report.plan.padding)
    origin = Origin(reader, ("weight",), finished.encoded, finished.tensor)
    _write(origin, report, contents, choose_format(contents, report.plan.format), out)


def _write(
    origin: Origin,
    report: QuantReport,
    contents: Contents,
    format: Format,
    out: Path,
    *,
    overwrite: bool = False,
) -> None:
    record = report.to_dict()
    write_checkpoint(
        origin,
        replace(contents, solver=Solver.from_record(record)),
        format,
        out,
        config=contents.config.raw,
        record=record,
        overwrite=overwrite,
    )


@dataclass(frozen=True)
class Originals:
    """Tensors of the float checkpoint as the quantized model has them."""

    model: QwenVL
    layers: Mapping[str, QuantLinear]
    reader: CheckpointReader
    changed: Collection[str]
    padding: tuple[Padding, ...]
    format: Format

    def encoded(self, name: str) -> Mapping[str, Tensor]:
        """See `Origin.encoded`."""
        dtype = computing_dtype(self.model.config, self.reader)
        return encode_layer(self.layers[name].quantized(), self.format, dtype, name)

    def all(self) -> dict[str, Tensor]:
        """All that is written of the layers and of what was changed, by canonical name."""
        tensors = {
            f"{name}.{part}": tensor
            for name in self.layers
            for part, tensor in self.encoded(name).items()
        }
        biases = [f"{name}.bias" for name in self.layers]
        for name in (*self.changed, *(bias for bias in biases if bias in self.reader)):
            tensor = self.tensor(name)
            assert tensor is not None
            tensors[name] = tensor
        return tensors

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


@dataclass(frozen=True)
class _Finished:
    """The tensors of the new checkpoint, from files alone."""

    done: Mapping[str, LazyTensor]
    reader: CheckpointReader
    config: ModelConfig
    """Padded."""
    padding: tuple[Padding, ...]

    @cached_property
    def _parts(self) -> dict[str, dict[str, LazyTensor]]:
        """What `done` holds of each module, by the last part of its name."""
        parts: dict[str, dict[str, LazyTensor]] = {}
        for name, tensor in self.done.items():
            owner, _, leaf = name.rpartition(".")
            parts.setdefault(owner, {})[leaf] = tensor
        return parts

    def encoded(self, layer: str) -> dict[str, LazyTensor]:
        """See `Origin.encoded`."""
        return {leaf: tensor for leaf, tensor in self._parts[layer].items() if leaf != "bias"}

    def tensor(self, name: str) -> LazyTensor | None:
        """See `Origin.tensor`."""
        if name == HEAD and self.config.text.tie_word_embeddings:
            return None  # a copy of the embedding, which readers tie again
        if name in self.done:
            return self.done[name]
        later = self.reader.later(name)
        grown = padded_shapes(self.config, self.padding).get(name)
        if grown is None:
            return later
        dim, _, after = grown
        return replace(
            later,
            shape=(*later.shape[:dim], after, *later.shape[dim + 1 :]),
            read=lambda: pad_tensors({name: later.read()}, self.config, self.padding)[name],
        )
