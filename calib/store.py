"""The seams of block-wise work: where blocks come from, and where activations wait.

Both are in memory here. Versions that keep blocks and activations on disk need only these methods.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor, nn

State = dict[str, Tensor]
"""What flows between two blocks for one sample: hidden states and all that travels with them."""


class BlockSource(Protocol):
    """Gives modules with their weights, one block at a time."""

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
        """Forget one state."""
        ...


class ModelBlocks:
    """A block source over a model that lies in memory as a whole."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def load(self, path: str) -> nn.Module:
        """See `BlockSource.load`."""
        return self._model.get_submodule(path)

    def release(self, path: str) -> None:
        """See `BlockSource.release`; the model keeps its blocks."""


class MemoryStore:
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
