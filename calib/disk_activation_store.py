"""Activations in files, so that they need no memory and outlast the process.

A folder holds one folder for each block with states in front of it, and in that a safetensors file
for each sample. A background thread writes the states, with a bounded queue; `seal` waits until
those of a block are flushed to disk.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import safe_open

from ..common.atomic import atomic_path, sync_folder
from ..common.safetensors_writer import write_tensors
from .activation_store import State

MAX_PENDING_WRITES = 2  # states that wait to be written, at most


class DiskActivationStore:
    """An activation store that keeps every state in a file, and some in memory too.

    Args:
        folder: made if it is missing. What lies in it is taken for what was put.
        device: where states go.
        budget: bytes of states that may be kept in memory as well.
    """

    def __init__(self, folder: Path, device: torch.device, budget: int = 0) -> None:
        self._folder, self._device = folder, device
        self._room = budget
        self._memory: dict[tuple[str, int], State] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="activations")
        self._writing: dict[tuple[str, int], Future[None]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, block: str, sample: int, state: State) -> None:
        """See `ActivationStore.put`.

        Raises:
            OSError: this state, or one that was put before it, could not be written.
        """
        path = self._path(block, sample)
        path.parent.mkdir(exist_ok=True)
        self._wait(MAX_PENDING_WRITES - 1)
        self._writing[block, sample] = self._writer.submit(_write, state, path)
        self._remember(block, sample, state)

    def get(self, block: str, sample: int) -> State:
        """See `ActivationStore.get`."""
        if (block, sample) in self._memory:
            return self._memory[block, sample]
        if (block, sample) in self._writing:
            self._writing.pop((block, sample)).result()
        with safe_open(str(self._path(block, sample)), "pt") as file:
            # Copies: what is read is a view of the file, which counts as held while it is used.
            state = {
                name: file.get_tensor(name).to(self._device, copy=True) for name in file.keys()
            }
        self._remember(block, sample, state)
        return state

    def drop(self, block: str, sample: int) -> None:
        """See `ActivationStore.drop`; the file stays until `keep` removes it."""
        state = self._memory.pop((block, sample), None)
        if state is not None:
            self._room += _size(state)

    def seal(self, block: str) -> None:
        """See `ActivationStore.seal`.

        Raises:
            OSError: a state could not be written.
        """
        self._wait()
        if self._path(block, 0).parent.is_dir():
            sync_folder(self._path(block, 0).parent)
            sync_folder(self._folder)

    def keep(self, blocks: Collection[str]) -> None:
        """Remove everything but the states in front of the given blocks."""
        self._wait()
        wanted = {self._path(block, 0).parent.name for block in blocks}
        for entry in os.scandir(self._folder):
            if entry.name not in wanted:
                shutil.rmtree(entry.path)

    def close(self) -> None:
        """Nothing is written once this returns; unsealed states may be lost."""
        self._writer.shutdown(cancel_futures=True)

    def _wait(self, left: int = 0) -> None:
        """Until so many states at most are still to be written."""
        while len(self._writing) > left:
            self._writing.pop(next(iter(self._writing))).result()

    def _path(self, block: str, sample: int) -> Path:
        return self._folder / block.replace(" ", "-") / f"{sample}.safetensors"

    def _remember(self, block: str, sample: int, state: State) -> None:
        size = _size(state)
        if (block, sample) not in self._memory and size <= self._room:
            self._memory[block, sample] = state
            self._room -= size


def _write(state: State, path: Path) -> None:
    with atomic_path(path) as temporary:  # `write_tensors` flushes the data, `seal` the names
        write_tensors(state, temporary)


def _size(state: State) -> int:
    return sum(tensor.nbytes for tensor in state.values())
