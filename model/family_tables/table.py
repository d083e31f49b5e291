"""The structure of a model as data for calibration and quantization.

A stage is a run of blocks (vision blocks, a merger, decoder layers, the head), equal or of a few
kinds that alternate: layers with linear and with full attention (`stage.py`). The state of a
sample, a dict of tensors, passes through the blocks of all stages; a stage has functions for its
first state, for one block, and for what remains after the last block. Calibration, the smoke test
and the plan are driven by these.

Within a block every linear layer is listed with its input tensor, its tap (`entries.py`): linears
with the same tap share one Hessian. Bindings list the pairs of operations between which channels
can be rescaled without changing the function. They belong to a stage and are never derived from
module names, because the vision MLP of Qwen2.5-VL has the decoder's names.

Every field is read by code, and a value without an implementation is an error: what can be checked
without a model is checked here, and `family_check` compares a table with the modules of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import ModelConfig
from ..features import HIDDEN
from ..processing.chat_format import QWEN, ChatFormat
from ..rope import MropeLayout
from .entries import BlockLinear, LinearSpec, Part, WeightSlice, widths
from .stage import Blocks, Stage

if TYPE_CHECKING:  # modules of models import this one
    from ..config import TextConfig, VisionConfig
    from ..text import TextModel
    from ..tower import Tower

EMBEDDING = "model.embed_tokens"
"""Module path of the token embedding in all families."""

# Copied byte for byte into every saved checkpoint: saving through a library can change such files
# (truncation settings, templates).
SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)


@dataclass(frozen=True)
class Family:
    """A model type: its stages in the order of computation, those of the tower first.

    Raises:
        ValueError: the stages are not in this order, or two have one name.
    """

    name: str
    stages: tuple[Stage, ...]
    build_tower: Callable[[VisionConfig], Tower]
    build_decoder: Callable[[TextConfig, MropeLayout], TextModel]
    mrope_layout: MropeLayout
    features: Callable[[ModelConfig], tuple[str, ...]] = lambda config: (HIDDEN,)  # keys
    tower_modules: tuple[str, ...] = ("visual",)  # its names in files and engines
    side_files: tuple[str, ...] = SIDE_FILES  # name patterns in the checkpoint's folder
    chat: ChatFormat = QWEN
    formats: tuple[str, ...] = ()  # of its quantized checkpoints, preferred first; empty: all
    served: bool = True  # whether an engine of today has the family
    # Pairs of a stage's path and how the names of its blocks end in files, if that is not the same.
    file_paths: tuple[tuple[str, str], ...] = ()
    carried: tuple[Blocks, ...] = ()  # checkpoints hold their tensors, models have no such modules
    # Parts of tensors that the model does not compute with, by the start of their names.
    carried_parts: Callable[[ModelConfig], Mapping[str, Part]] = lambda config: {}

    def __post_init__(self) -> None:
        names, parts = [s.name for s in self.stages], [s.part for s in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"{self.name}: two stages have one name: {', '.join(names)}")
        if parts != [*["tower"] * (len(parts) - 2), "decoder", "head"] or len(parts) < 3:
            raise ValueError(
                f"{self.name}: the parts of its stages are {', '.join(parts)}; allowed: one or "
                "more of the tower, then one of the decoder and one of the head"
            )
        for stage in (self.stages[0], self.decoder):
            if stage.enter is None:
                raise ValueError(f"{self.name}: stage {stage.name} needs `enter`")

    @property
    def tower(self) -> tuple[Stage, ...]:
        """The stages of the tower."""
        return self.stages[:-2]

    @property
    def decoder(self) -> Stage:
        """The stage of the decoder layers."""
        return self.stages[-2]

    @property
    def head(self) -> Stage:
        """The stage of the output head; it has no block if the head is tied to the embedding."""
        return self.stages[-1]

    def stage(self, name: str) -> Stage:
        """Return the stage called `name`.

        Raises:
            ValueError: there is no such stage.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        allowed = ", ".join(stage.name for stage in self.stages)
        raise ValueError(f"{self.name} has no stage {name!r}; allowed: {allowed}")

    def linears(self, config: ModelConfig) -> list[LinearSpec]:
        """List every linear layer of a model in the order of computation."""
        return _linears(config, self.stages)

    def carried_linears(self, config: ModelConfig) -> list[LinearSpec]:
        """List every linear layer of the blocks that are carried along."""
        return _linears(config, self.carried)

    def embedding(self, config: ModelConfig) -> LinearSpec:
        """Return the token embedding as a target."""
        size = widths(config)
        return LinearSpec(
            EMBEDDING, size["hidden"], size["vocab"], False, "embedding", "embedding", 0, "tokens"
        )

    def targets(self, config: ModelConfig) -> list[LinearSpec]:
        """List everything that can be quantized: the token embedding and every linear layer."""
        return [self.embedding(config), *self.linears(config), *self.carried_linears(config)]

    def kept(self, config: ModelConfig) -> list[tuple[LinearSpec, str]]:
        """List the linear layers that are never quantized, each with the reason."""
        return _kept(config, self.stages)

    def carried_kept(self, config: ModelConfig) -> list[tuple[LinearSpec, str]]:
        """List those of the blocks that are carried along."""
        return _kept(config, self.carried)


def _linears(config: ModelConfig, runs: Iterable[Blocks]) -> list[LinearSpec]:
    return [
        spec
        for blocks in runs
        for block in blocks.indices(config)
        for linear in blocks.block_linears(config, block)
        for spec in _specs(config, blocks, block, linear)
    ]


def _kept(config: ModelConfig, runs: Iterable[Blocks]) -> list[tuple[LinearSpec, str]]:
    size = widths(config)
    return [
        (
            LinearSpec(
                f"{stage.block_path(block)}.{kept.name}",
                size[kept.inputs],
                size[kept.outputs],
                kept.bias,
                stage.name,
                stage.part,
                block,
                kept.tap,
            ),
            kept.reason,
        )
        for stage in runs
        for block in stage.indices(config)
        for kept in stage.block_kept(config, block)
    ]


def _specs(
    config: ModelConfig, stage: Blocks, block: int, linear: BlockLinear
) -> Iterator[LinearSpec]:
    """Yield a linear layer of one block, or the layers of its experts."""
    path, size, experts = stage.block_path(block), widths(config), linear.experts
    share = experts.active(config) / experts.count(config) if experts else 1.0
    for index, name in enumerate(linear.names(config)):
        weight = None
        if experts:
            tensor = f"{path}.{experts.name}"
            weight = WeightSlice(tensor, index, experts.part, experts.input_major(config))
        yield LinearSpec(
            f"{path}.{name}" if name else path,
            size[linear.inputs],
            size[linear.outputs],
            linear.bias,
            stage.name,
            stage.part,
            block,
            linear.tap,
            linear.input_split,
            weight,
            share,
            tuple(size[part] for part in linear.row_parts),
        )
