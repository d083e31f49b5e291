"""Runs of blocks: those that samples pass, and those that a checkpoint only holds.

`steps.py` has the functions that most stages need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from ..config import ModelConfig
from ..features import HIDDEN
from .entries import (
    PARTS,
    BlockLinear,
    KeptLinear,
    NormBinding,
    PaddedWidth,
    PairBinding,
    Part,
    widths,
)

if TYPE_CHECKING:  # modules of models import this one
    from ..processing.inputs import Prompt
    from ..qwen_vl import QwenVL
    from ..text import State

Enter = Callable[["QwenVL", "Prompt", "State | None"], "State"]
"""Called with the model, a sample and its state after the stage before (None: it has none); returns
the sample's state before the first block."""
Step = Callable[["QwenVL", int, "State"], "State"]
"""Called with the model, the index of a block and its input; returns the state after the block."""
Leave = Callable[["QwenVL", "State"], "State"]
"""Called with the model and a sample's state after the last block; returns what remains of it."""
Complete = Callable[["QwenVL", int, "State", Tensor], "State"]
"""Called with the model, the index of a block, its input, and the output that was computed from a
checkpoint; returns the state after the block."""

Cached = Callable[["QwenVL", int, "State"], tuple[Tensor, Tensor]]
"""Called with the model, the index of a block and its input; returns the keys (after the rotary
embedding) and values that the block caches, `[1, kv_heads, tokens, head_dim]`."""

Kind = Callable[[ModelConfig, int], str]
"""Called with the index of a block; returns the name of its kind, one of a few in a stage."""


@dataclass(frozen=True)
class Checkpoints:
    """Taps inside a block at which calibration can interrupt and resume it.

    The block's module has `forward_to` and `forward_from`, and for taps of experts `expert_inputs`,
    see `text.DecoderLayer`.
    """

    taps: tuple[str, ...]  # in the order of computation
    complete: Complete


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A run of blocks with their linear layers; fused groups are those of blocks that have them.

    Raises:
        ValueError: fields contradict each other.
    """

    name: str
    part: Part
    path: str  # module path, with {} for the block index if there are several blocks
    count: Callable[[ModelConfig], int]
    first: Callable[[ModelConfig], int] = lambda config: 0  # index of the first block
    linears: tuple[BlockLinear, ...]  # other fields name those of experts with {}, as they do
    kept: tuple[KeptLinear, ...] = ()
    kind: Kind | None = None  # None: all blocks are equal
    fused: tuple[tuple[str, ...], ...] = ()  # engines fuse each group: one scheme for its members

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(
                f"stage {self.name}: part {self.part!r} is unknown; allowed: {', '.join(PARTS)}"
            )
        names = [linear.name for linear in self.linears]
        self._refuse("linear", (name for group in self.fused for name in group), names)
        self._refuse("linear of two entries", [n for n in names if names.count(n) > 1], ())
        by_name = {linear.name: linear for linear in self.linears}
        for group in self.fused:
            taps = {by_name[name].tap for name in group}
            self._refuse("tap of fused linears", sorted(taps)[1:], ())

    def _refuse(self, what: str, used: Iterable[str], allowed: Iterable[str]) -> None:
        """Refuse names that are not among the allowed ones."""
        if unknown := sorted(set(used) - set(allowed)):
            raise ValueError(
                f"stage {self.name}: {what} {', '.join(unknown)} does not fit its other fields; "
                f"allowed: {', '.join(sorted(allowed)) or 'none'}"
            )

    def block_linears(self, config: ModelConfig, block: int) -> tuple[BlockLinear, ...]:
        """Return the linear layers of one block."""
        kind = self._kind(config, block)
        return tuple(each for each in self.linears if each.kind in (None, kind))

    def block_kept(self, config: ModelConfig, block: int) -> tuple[KeptLinear, ...]:
        """Return the linear layers of one block that are never quantized."""
        kind = self._kind(config, block)
        return tuple(each for each in self.kept if each.kind in (None, kind))

    def fused_groups(self, config: ModelConfig, block: int) -> tuple[tuple[str, ...], ...]:
        """Return the fused groups of a block, those of experts for each of them."""
        names = self._names(config, block)
        return tuple(
            members
            for group in self.fused
            if names.keys() >= set(group)
            for members in zip(*(names[name] for name in group), strict=True)
        )

    def members(self, config: ModelConfig, block: int) -> set[str]:
        """Return the module paths within a block of all its linear layers."""
        return {path for paths in self._names(config, block).values() for path in paths}

    def width_tensors(
        self, config: ModelConfig, block: int, width: PaddedWidth
    ) -> Iterator[tuple[str, int]]:
        """Yield the names of the tensors of a block that have an inner width.

        Args:
            config: of the model.
            block: index of the block.
            width: of a stage whose linear layers this run of blocks has.

        Yields:
            The name of each tensor, and the dimension of the width.
        """
        path, names = self.block_path(block), self.members(config, block)
        biased = {linear.name for linear in self.linears if linear.bias}
        for linear in sorted(names.intersection(width.outputs)):
            yield f"{path}.{linear}.weight", 0
            if linear in biased:
                yield f"{path}.{linear}.bias", 0
        for linear in sorted(names.intersection(width.inputs)):
            yield f"{path}.{linear}.weight", 1

    def _names(self, config: ModelConfig, block: int) -> dict[str, tuple[str, ...]]:
        """Return the module paths within a block by name in the table."""
        return {kept.name: (kept.name,) for kept in self.block_kept(config, block)} | {
            linear.name: linear.names(config) for linear in self.block_linears(config, block)
        }

    def _kind(self, config: ModelConfig, block: int) -> str | None:
        return None if self.kind is None else self.kind(config, block)

    def block_path(self, block: int) -> str:
        """Return the module path of one block, such as `model.layers.3`."""
        return self.path.format(block)

    def blocks(self, config: ModelConfig) -> tuple[str, ...]:
        """Return the module paths of all blocks in the order of computation."""
        return tuple(self.block_path(block) for block in self.indices(config))

    def indices(self, config: ModelConfig) -> range:
        """Return the indices of all blocks in the order of computation."""
        first = self.first(config)
        return range(first, first + self.count(config))


@dataclass(frozen=True, kw_only=True)
class Stage(Blocks):
    """A run of blocks that samples pass; bindings are those of the blocks that have their linears.

    Raises:
        ValueError: fields contradict each other.
    """

    step: Step
    entry: tuple[str, ...] = ()  # modules that belong to no block; `enter` runs them
    enter: Enter | None = None  # None: the state after the stage before
    leave: Leave | None = None  # None: all of the state
    output: str = HIDDEN  # key of a block's output in the state, with {} for the block index
    per_patch: bool = False  # blocks compute patches instead of merged tokens
    checkpoints: Checkpoints | None = None  # None: a block runs as a whole
    cached: Cached | None = None  # None: blocks cache no keys and values
    cached_kind: str | None = None  # kind of the blocks that cache keys and values; None: all
    norms: tuple[NormBinding, ...] = ()
    pairs: tuple[PairBinding, ...] = ()
    padded: tuple[PaddedWidth, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [linear.name for linear in self.linears]
        read = [name for norm in self.norms for name in norm.linears]
        used = [
            *(name for pair in self.pairs for name in (pair.source, pair.target)),
            *(name for padded in self.padded for name in (*padded.outputs, *padded.inputs)),
        ]
        self._refuse("linear", used, names)
        self._refuse("linear", read, [*names, *(kept.name for kept in self.kept)])
        if self.checkpoints is not None:
            self._refuse("tap", self.checkpoints.taps, {linear.tap for linear in self.linears})
        by_name = {linear.name: linear for linear in self.linears}
        for padded in self.padded:
            sizes = {by_name[name].outputs for name in padded.outputs}
            sizes |= {by_name[name].inputs for name in padded.inputs}
            self._refuse("padded width", sorted(sizes), {padded.width})

    def bindings(self, config: ModelConfig, block: int) -> tuple[NormBinding | PairBinding, ...]:
        """Return all bindings of a block: a norm's for all experts, a pair's for each of them."""
        names = self._names(config, block)
        norms = (
            replace(
                norm,
                linears=tuple(name for of in norm.linears for name in names[of]),
                tiles=norm.tiles if norm.tiles_of is None else widths(config)[norm.tiles_of],
            )
            for norm in self.norms
            if names.keys() >= set(norm.linears)
        )
        pairs = (
            replace(pair, source=source, target=target)
            for pair in self.pairs
            if names.keys() >= {pair.source, pair.target}
            for source, target in zip(names[pair.source], names[pair.target], strict=True)
        )
        return (*norms, *pairs)

    def caches(self, config: ModelConfig, block: int) -> bool:
        """Return whether a block caches keys and values."""
        kind = self.cached_kind
        return self.cached is not None and kind in (None, self._kind(config, block))

    def output_key(self, block: int) -> str:
        """Return the key of a block's output in the state after it."""
        return self.output.format(block)
