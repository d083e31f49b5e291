"""Block loading and activation storage for blockwise execution.

The implementations here keep everything in memory. `disk_activation_store` stores activations in
files, and `quant` provides the block source that reads blocks from a checkpoint.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from ..model.qwen_vl import QwenVL

State = dict[str, Tensor]
"""Input of a block for one sample: hidden states, rotary tables, segment bounds and masks."""


class BlockSource(Protocol):
    """Provides modules with their weights, one block at a time."""

    @property
    def device(self) -> torch.device:
        """Device on which the modules run."""
        ...

    def load(self, path: str) -> nn.Module:
        """Return the module at `path` (such as `model.layers.3`), ready to run."""
        ...

    def release(self, path: str) -> None:
        """Allow the memory of a module to be freed; it will not run again."""
        ...


class ActivationStore(Protocol):
    """Stores the input state of a block for every sample."""

    def put(self, block: str, sample: int, state: State, *, persistent: bool = True) -> None:
        """Store one sample's input of a block.

        Args:
            block: key of the states of all samples.
            sample: number of the sample.
            state: not changed afterwards by the caller.
            persistent: whether a later process may need it.
        """
        ...

    def get(self, block: str, sample: int) -> State:
        """Return a stored state; the caller must not change it."""
        ...

    def drop(self, block: str, sample: int) -> None:
        """Remove one state. A persistent store may still hold it after a restart."""
        ...

    def seal(self, block: str) -> None:
        """Make the states of a block persistent, if the store can; all of them have been put."""
        ...


class ModelBlocks:
    """A block source over a model that is entirely in memory."""

    def __init__(self, model: QwenVL) -> None:
        self._model = model

    @property
    def device(self) -> torch.device:
        """See `BlockSource.device`."""
        return self._model.device

    def load(self, path: str) -> nn.Module:
        """See `BlockSource.load`."""
        return self._model.get_submodule(path)

    def release(self, path: str) -> None:
        """See `BlockSource.release`; the model keeps its blocks."""


class MemoryActivationStore:
    """An activation store in a dictionary."""

    def __init__(self) -> None:
        self._states: dict[tuple[str, int], State] = {}

    def put(self, block: str, sample: int, state: State, *, persistent: bool = True) -> None:
        """See `ActivationStore.put`."""
        self._states[block, sample] = state

    def get(self, block: str, sample: int) -> State:
        """See `ActivationStore.get`."""
        return self._states[block, sample]

    def drop(self, block: str, sample: int) -> None:
        """See `ActivationStore.drop`."""
        del self._states[block, sample]

    def seal(self, block: str) -> None:
        """See `ActivationStore.seal`; this store is not persistent."""

    def __len__(self) -> int:
        return len(self._states)


@contextmanager
def hold_block(blocks: BlockSource, path: str) -> Iterator[nn.Module]:
    """Load a module for the length of a `with` block."""
    module = blocks.load(path)
    try:
        yield module
    finally:
        blocks.release(path)
