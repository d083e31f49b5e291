"""Inner widths of MLPs that become narrower: their sizes before and after, and their tensors.

config.json has one width for all blocks of a stage, so all of them keep as many channels. The
widths are those that may be padded (`PaddedWidth`): the same tensors and the same field.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ....model.carried import CarriedTensors
from ....model.config import ModelConfig
from ....model.config_edits import with_fields
from ....model.families import Blocks, PaddedWidth, Stage, family_of, widths
from ...steps.preparation import Foreseen
from ...steps.shrink import ShrinkStep


@dataclass(frozen=True)
class NarrowedWidth:
    """An inner width of a stage."""

    stage: Stage
    width: PaddedWidth
    before: int
    after: int

    @property
    def field(self) -> str:
        """Path of the width in config.json."""
        section, field = self.width.config_field
        return f"{section}.{field}" if section else field

    @property
    def down(self) -> str:
        """Name within a block of the linear layer that reads the channels."""
        (name,) = self.width.inputs
        return name

    def tensors(self, config: ModelConfig, block: int) -> dict[str, int]:
        """Map the names of the tensors of a block to the dimension that becomes narrower."""
        return dict(self.stage.width_tensors(config, block, self.width))

    def carried(self, config: ModelConfig) -> Iterator[tuple[Blocks, int]]:
        """Yield the blocks that are carried along and have the same width, with their index.

        They are those of the module for multi-token prediction, whose layers are the decoder's.
        """
        if self.stage.part != "decoder":
            return
        for blocks in family_of(config).carried:
            for index in range(blocks.count(config)):
                if blocks.members(config, index) >= {*self.width.inputs, *self.width.outputs}:
                    yield blocks, index

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON."""
        return {
            "stage": self.stage.name,
            "config_field": self.field,
            "before": self.before,
            "after": self.after,
        }


def choose_widths(config: ModelConfig, step: ShrinkStep) -> tuple[NarrowedWidth, ...]:
    """Choose the widths that a step changes, in the order of computation.

    Raises:
        ValueError: a part has no such width, or fewer channels than `multiple`.
    """
    targets = step.targets or ()
    family, sizes = family_of(config), widths(config)
    stages = [s for s in family.stages if s.part in targets and s.padded]
    for part in targets:
        if part not in {stage.part for stage in stages}:
            raise ValueError(f"shrink: {_why_not(config, part)}; take {part} out of targets")
    chosen = []
    for stage in stages:
        for width in stage.padded:
            before = sizes[width.width]
            chosen.append(NarrowedWidth(stage, width, before, _narrowed(stage, before, step)))
    return tuple(chosen)


def foresee_widths(config: ModelConfig, step: ShrinkStep) -> Foreseen:
    """Return the config with narrower MLPs, and a line about them; see `Preparation.foresee`."""
    chosen = choose_widths(config, step)
    parts = ", ".join(f"{w.stage.name} {w.before} to {w.after}" for w in chosen)
    refit = "refitted" if step.refit else "not refitted"
    summary = f"MLP channels: {parts} (by {step.score}, {refit})"
    return Foreseen(narrowed_config(config, chosen), summary)


def narrowed_config(config: ModelConfig, chosen: tuple[NarrowedWidth, ...]) -> ModelConfig:
    """Return the config of the narrower model."""
    for width in chosen:
        section, field = width.width.config_field
        config = with_fields(config, section, {field: width.after})
    return config


def narrowed_carried(
    config: ModelConfig, carried: CarriedTensors, step: ShrinkStep
) -> CarriedTensors:
    """Return the tensors that a checkpoint carries along, with those of the widths narrower."""
    sizes = dict(carried.bytes)
    for width in choose_widths(config, step):
        for blocks, index in width.carried(config):
            for name, _ in blocks.width_tensors(config, index, width.width):
                if name in sizes:
                    sizes[name] = sizes[name] // width.before * width.after
    return replace(carried, bytes=sizes)


def _narrowed(stage: Stage, before: int, step: ShrinkStep) -> int:
    """Return the new width: the largest multiple within the share, or all channels."""
    assert step.keep is not None
    assert step.multiple is not None
    if step.keep == 1:
        return before
    # The share as a fraction of whole channels: 0.7 * 10 is less than 7 in floating point.
    channels = int(round(step.keep * before, 6))
    after = channels - channels % step.multiple
    if not after:
        raise ValueError(
            f"shrink: keep {step.keep:g} leaves {channels} of {before} channels in the MLPs of "
            f"{stage.name}, fewer than multiple {step.multiple}; raise keep or lower multiple"
        )
    return after


def _why_not(config: ModelConfig, part: str) -> str:
    """Say why the MLPs of a part cannot become narrower."""
    if part == "decoder" and config.text.experts is not None:
        return "the MLPs of the decoder are experts, whose channels cannot be removed"
    return (
        f"config.json of {config.family} has no field for the inner width of the MLPs of the {part}"
    )
