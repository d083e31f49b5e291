"""Block sizes of the Triton kernels: tables by number of tokens, and a default beyond them.

The values follow from shared memory, registers and the latency of memory, see docs/kernels.md; they
were compiled and inspected, not timed. `benchmarks/gpu_code.py` compiles all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from .packing import ROWS, PackedWeight


@dataclass(frozen=True)
class Blocks:
    """Division of a product into programs."""

    m: int
    """Tokens per block."""
    n: int
    """Output features per block, a divisor of `packing.ROWS`."""
    inputs: int = 128
    """Inputs per step of the main loop, at least one tile."""
    warps: int = 4
    stages: int = 4
    """Depth of the software pipeline: steps whose loads are in flight while one is multiplied."""
    per_processor: int = 3
    """Programs that one multiprocessor runs at a time."""
    persistent: bool = False
    """Whether programs compute several blocks each; otherwise they may split the inputs."""
    splits: int | None = None
    """Programs that share the inputs of a block; None = as many as fill the processor."""
    band: int = 8
    """Blocks of tokens that are computed next to each other, see `many_tokens`."""
    processors: int | None = None
    """Multiprocessors; None = those of the device."""

    def tiles_per_step(self, weight: PackedWeight) -> int:
        """Tiles of a weight in each step of a product with 16-bit activations.

        As many as make `inputs`, within a group, whose sums have one scale.
        """
        tiles = max(1, self.inputs // weight.tile)
        within = len(weight.words) if weight.groups == 1 else weight.tiles_per_group
        while within % tiles:
            tiles //= 2
        return tiles

    def programs(self, m: int, n_padded: int, device: torch.device) -> int:
        """Programs of a persistent product: those that run at a time, if there are as many."""
        return min(_blocks_of(self, m, n_padded), self._slots(device))

    def split_count(self, m: int, n_padded: int, steps: int, device: torch.device) -> int:
        """Programs that share the inputs of a block.

        Few enough that every program has a step per stage, or its pipeline is never full.
        """
        if self.splits is not None:
            return min(self.splits, steps)
        filling = self._slots(device) // _blocks_of(self, m, n_padded)
        return max(1, min(filling, steps // self.stages))

    def _slots(self, device: torch.device) -> int:
        return (self.processors or _processors(device)) * self.per_processor


@dataclass(frozen=True)
class Workspace:
    """Division of a product by its inputs, and the memory in which splits exchange their sums."""

    programs: tuple[int, int, int]
    """Grid of programs: blocks of output features, splits, blocks of tokens."""
    splits: int
    steps_per_split: int
    partials: Tensor
    """`[splits, M, N']`; empty without splits."""
    counters: Tensor
    """int32, zero before and after a product."""

    @classmethod
    def of(
        cls,
        blocks: Blocks,
        m: int,
        steps: int,
        n_padded: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Workspace:
        """Divide a product of `m` tokens in `steps` of the inputs; sums have this dtype."""
        per_split = -(-steps // blocks.split_count(m, n_padded, steps, device))
        splits = -(-steps // per_split)
        programs = (n_padded // blocks.n, splits, -(-m // blocks.m))
        shape = (splits, m, n_padded) if splits > 1 else (0,)
        partials = torch.empty(shape, dtype=dtype, device=device)
        return cls(programs, splits, per_split, partials, _counters(device))


MOST_COUNTERS = 2**16
"""Blocks of a product with splits; more than fit on a processor at a time."""

HOPPER, BLACKWELL = 90, 100
"""First compute capabilities whose tensor cores read activations from shared memory, and whose sums
are in tensor memory."""

# (largest number of tokens, blocks). The smallest block of tokens is one instruction wide.
FLOAT: tuple[tuple[int, Blocks], ...] = (
    (16, Blocks(16, 128)),
    (32, Blocks(32, 128)),
    (64, Blocks(64, 128, inputs=64, per_processor=2)),
)
BYTES: tuple[tuple[int, Blocks], ...] = (
    (16, Blocks(16, 128, stages=5)),
    (32, Blocks(32, 128, stages=5)),
    (64, Blocks(64, 128, per_processor=2)),
)
# With many tokens. A wide block reads fewer activations per product. Its sums take half of the
# registers, which leaves enough where activations are multiplied from shared memory.
NARROW = Blocks(64, 128, inputs=64, stages=3, per_processor=2, persistent=True)
SQUARE = replace(NARROW, n=64)
WIDE = replace(NARROW, m=128, stages=4)


def float_blocks(m: int, kind: str, capability: int) -> Blocks:
    """Choose the blocks of a product with 16-bit activations.

    Args:
        m: tokens.
        kind: of the packed weight; integers of 8 bits need more registers than other kinds.
        capability: ten times the major plus the minor version.
    """
    if capability < HOPPER:
        return _look_up(FLOAT, SQUARE if kind == "bytes" else NARROW, m)
    return _look_up(FLOAT, WIDE, m)


def byte_blocks(m: int, grouped: bool, capability: int) -> Blocks:
    """Choose the blocks of a product with 8-bit activations, see `float_blocks`.

    Groups need a second set of sums, on Blackwell from tensor memory to registers at once.
    """
    if grouped:
        return _look_up(BYTES, SQUARE if capability >= BLACKWELL else NARROW, m)
    return _look_up(BYTES, WIDE if capability >= HOPPER else NARROW, m)


def _look_up(table: tuple[tuple[int, Blocks], ...], default: Blocks, m: int) -> Blocks:
    return next((blocks for limit, blocks in table if m <= limit), default)


def _blocks_of(blocks: Blocks, m: int, n_padded: int) -> int:
    assert ROWS % blocks.n == 0
    return -(-m // blocks.m) * (n_padded // blocks.n)


@cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1  # Triton's interpreter
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def capability_of(device: torch.device) -> int:
    """Compute capability, ten times the major plus the minor version."""
    if device.type != "cuda":
        return HOPPER  # Triton's interpreter
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


_COUNTERS: dict[tuple[torch.device, int], Tensor] = {}


def _counters(device: torch.device) -> Tensor:
    """Counters of a stream, whose products run one after another."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    key = (device, stream)
    if key not in _COUNTERS:
        _COUNTERS[key] = torch.zeros(MOST_COUNTERS, dtype=torch.int32, device=device)
    return _COUNTERS[key]
