"""The seams of block-wise work: where blocks come from, and where activations wait.

Both are in memory here. `disk_store.py` keeps activations in files; blocks that come from a
checkpoint are the business of whoever knows how they are written.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from ..model.qwen_vl import QwenVL

State = dict[str, Tensor]
"""What flows between two blocks for one sample: hidden states and all that travels with them."""


class BlockSource(Protocol):
    """Gives modules with their weights, one block at a time."""

    @property
    def device(self) -> torch.device:
        """Where the modules are when they run."""
        ...

    def load(self, path: str) -> nn.Module:
        """The module at `path` (such as ``model.layers.3``), ready to run."""
        ...

    def release(self, path: str) -> None:
        """The module will not run again; its memory may go."""
        ...


class ActivationStore(Protocol):
    """Keeps the input of a block for every sample."""

    def put(self, block: str, sample: int, state: State) -> None:
        """Store one sample's state in front of a block."""
        ...

    def get(self, block: str, sample: int) -> State:
        """The state that was put; the caller must not change it."""
        ...

    def drop(self, block: str, sample: int) -> None:
        """Forget one state; one that is stored for good may be there again after a restart."""
        ...

    def seal(self, block: str) -> None:
        """All states in front of a block have been put: store them for good, if this store does."""
        ...


class ModelBlocks:
    """A block source over a model that lies in memory as a whole."""

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

    def put(self, block: str, sample: int, state: State) -> None:
        """See `ActivationStore.put`."""
        self._states[block, sample] = state

    def get(self, block: str, sample: int) -> State:
        """See `ActivationStore.get`."""
        return self._states[block, sample]

    def drop(self, block: str, sample: int) -> None:
        """See `ActivationStore.drop`."""
        del self._states[block, sample]

    def seal(self, block: str) -> None:
        """See `ActivationStore.seal`; nothing outlasts the process."""

    def __len__(self) -> int:
        return len(self._states)


@contextmanager
def loaded(blocks: BlockSource, path: str) -> Iterator[nn.Module]:
    """Hold a module for the length of a `with` block."""
    module = blocks.load(path)
    try:
        yield module
    finally:
        blocks.release(path)
