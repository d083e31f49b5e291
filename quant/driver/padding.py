"""Pad inner widths that kernels do not support with zero channels.

The vision MLP of Qwen2.5-VL is 3420 wide, which is divisible by 4 only: no group of int4 weights
and no tile of an int8 kernel fits. The 29568 channels of the 72B decoder fit until they are split
over two devices. Zero rows in the layers that output such a width, and zero columns in the layers
that read it, add channels of `silu(0) * 0`, which change no output. The family tables list the
widths that may be padded (`PaddedWidth`); config.json gets the new width.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...model.config import ModelConfig
from ...model.config_edits import with_fields
from ...model.families import PaddedWidth, family_of, widths
from ...model.qwen_vl import QwenVL

KERNEL_WIDTH = 128
"""Multiple that kernels of all engines support and that all usual group sizes divide."""


@dataclass(frozen=True)
class Padding:
    """The padding of one inner width of a stage."""

    stage: str
    width: PaddedWidth
    before: int
    after: int
    tp: int
    """Tensor-parallel size: the width is split over so many devices."""

    @property
    def reason(self) -> str:
        """Why the width is padded."""
        split = "" if self.tp == 1 else f" on each of {self.tp} devices"
        return f"kernels need a multiple of {KERNEL_WIDTH}{split}"

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON."""
        section, field = self.width.config_field
        return {
            "stage": self.stage,
            "config_field": f"{section}.{field}" if section else field,
            "before": self.before,
            "after": self.after,
            "tp": self.tp,
        }


def choose_padding(
    config: ModelConfig, quantized: Collection[str], tp: int = 1
) -> tuple[Padding, ...]:
    """Choose the widths that must be padded if these layers are quantized.

    config.json has one width for all blocks of a stage: a single quantized layer pads all of them.

    Args:
        config: of the unpadded model.
        quantized: names of the layers to quantize.
        tp: tensor-parallel size at serving time, at least 1.
    """
    names = set(quantized)
    chosen = []
    for stage in family_of(config).stages:
        for width in stage.padded:
            before = widths(config)[width.width]
            padding = Padding(stage.name, width, before, before + -before % (KERNEL_WIDTH * tp), tp)
            if padding.after != before and names & set(padded_layers(config, (padding,))):
                chosen.append(padding)
    return tuple(chosen)


def padded_config(config: ModelConfig, paddings: Sequence[Padding]) -> ModelConfig:
    """Return the config of the padded model; `raw` keeps the source's form, flat or nested."""
    if not paddings:
        return config
    for padding in paddings:
        section, field = padding.width.config_field
        config = with_fields(config, section, {field: padding.after})
    return config


def padded_layers(config: ModelConfig, paddings: Sequence[Padding]) -> dict[str, Padding]:
    """Map the names of padded layers to their paddings."""
    return {
        name.rpartition(".")[0]: padding
        for padding in paddings
        for name, _ in _members(config, padding)
    }


def padded_shapes(
    config: ModelConfig, paddings: Sequence[Padding]
) -> dict[str, tuple[int, int, int]]:
    """Map the names of padded tensors to the dimension, its size before and its size after."""
    return {
        name: (dim, padding.before, padding.after)
        for padding in paddings
        for name, dim in _members(config, padding)
    }


def pad_tensors(
    tensors: Mapping[str, Tensor], config: ModelConfig, paddings: Sequence[Padding]
) -> dict[str, Tensor]:
    """Return padded copies of the tensors that grow; the others are omitted.

    Args:
        tensors: some weights of the model by canonical name.
        config: of the model, before or after padding.
        paddings: from `choose_padding`.

    Raises:
        ValueError: a tensor does not have the size before padding.
    """
    shapes = padded_shapes(config, paddings)
    return {
        name: _pad(name, tensor, *shapes[name])
        for name, tensor in tensors.items()
        if name in shapes
    }


def pad_model_(model: QwenVL, paddings: Sequence[Padding]) -> None:
    """Pad the float weights of a model in place, one tensor at a time, and update its config.

    Raises:
        ValueError: as `pad_tensors`.
    """
    if not paddings:
        return
    for name, shape in padded_shapes(model.config, paddings).items():
        owner, _, leaf = name.rpartition(".")
        linear = model.get_submodule(owner)
        parameter = getattr(linear, leaf)
        padded = _pad(name, parameter.detach(), *shape)
        setattr(linear, leaf, nn.Parameter(padded, requires_grad=parameter.requires_grad))
        if isinstance(linear, nn.Linear):
            linear.out_features, linear.in_features = linear.weight.shape
    model.config = padded_config(model.config, paddings)
    model.visual.config = model.config.vision
    model.model.config = model.config.text


def _members(config: ModelConfig, padding: Padding) -> Iterator[tuple[str, int]]:
    """Yield the names of the tensors that have the width, each with its dimension."""
    stage = family_of(config).stage(padding.stage)
    for index in range(stage.count(config)):
        yield from stage.width_tensors(config, index, padding.width)


def _pad(name: str, tensor: Tensor, dim: int, before: int, after: int) -> Tensor:
    if tensor.shape[dim] != before:
        raise ValueError(
            f"{name} is {list(tensor.shape)}, config.json says {before} at dimension {dim}; "
            "they belong to different models"
        )
    inner = [0, 0] * (tensor.dim() - 1 - dim)  # F.pad starts with the last dimension
    return F.pad(tensor, (*inner, 0, after - before))
