"""Activations in files: they take no memory, and a later process can resume from them.

The folder holds a subfolder per block with one safetensors file per sample. States that no later
process needs are written only if they do not fit in memory. A background thread
writes states asynchronously, with a bounded queue; `seal` waits until the states of a block are
flushed to disk.
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

MAX_PENDING_WRITES = 2
"""States in the write queue. Two overlap writing with computation; more would only use memory."""


class DiskActivationStore:
    """An activation store with a file per state, and some states cached in memory.

    Args:
        folder: created if missing. Files in it count as states that were put.
        device: device of the states that `get` returns.
        budget: size of the memory cache in bytes.
    """

    def __init__(self, folder: Path, device: torch.device, budget: int = 0) -> None:
        self._folder, self._device = folder, device
        self._free_bytes = budget
        self._cache: dict[tuple[str, int], State] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="activations")
        self._pending_writes: dict[tuple[str, int], Future[None]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, block: str, sample: int, state: State, *, persistent: bool = True) -> None:
        """See `ActivationStore.put`; a state that is not persistent and is cached has no file.

        Raises:
            OSError: an earlier state could not be written.
        """
        self._add_to_cache(block, sample, state)
        if not persistent and (block, sample) in self._cache:
            return
        path = self._path(block, sample)
        path.parent.mkdir(exist_ok=True)
        self._wait_for_writes(MAX_PENDING_WRITES - 1)
        self._pending_writes[block, sample] = self._writer.submit(_write, state, path)

    def get(self, block: str, sample: int) -> State:
        """See `ActivationStore.get`."""
        if (block, sample) in self._cache:
            return self._cache[block, sample]
        if (block, sample) in self._pending_writes:
            self._pending_writes.pop((block, sample)).result()
        with safe_open(str(self._path(block, sample)), "pt") as file:
            # Copied, because tensors of `safe_open` are views of the memory-mapped file: its pages
            # would count as memory of this process for as long as they are used.
            state = {
                name: file.get_tensor(name).to(self._device, copy=True) for name in file.keys()
            }
        self._add_to_cache(block, sample, state)
        return state

    def drop(self, block: str, sample: int) -> None:
        """See `ActivationStore.drop`; the file stays until `keep` removes it."""
        state = self._cache.pop((block, sample), None)
        if state is not None:
            self._free_bytes += _size(state)

    def seal(self, block: str) -> None:
        """See `ActivationStore.seal`.

        Raises:
            OSError: a state could not be written.
        """
        self._wait_for_writes()
        if self._path(block, 0).parent.is_dir():
            sync_folder(self._path(block, 0).parent)
            sync_folder(self._folder)

    def keep(self, blocks: Collection[str]) -> None:
        """Remove all files except the states of the given blocks."""
        self._wait_for_writes()
        names = {self._path(block, 0).parent.name for block in blocks}
        for entry in os.scandir(self._folder):
            if entry.name not in names:
                shutil.rmtree(entry.path)

    def close(self) -> None:
        """Stop the writer thread; states that are not sealed may be lost."""
        self._writer.shutdown(cancel_futures=True)

    def _wait_for_writes(self, pending: int = 0) -> None:
        """Block until at most `pending` states are in the write queue."""
        while len(self._pending_writes) > pending:
            self._pending_writes.pop(next(iter(self._pending_writes))).result()

    def _path(self, block: str, sample: int) -> Path:
        return self._folder / block.replace(" ", "-") / f"{sample}.safetensors"

    def _add_to_cache(self, block: str, sample: int, state: State) -> None:
        size = _size(state)
        if (block, sample) not in self._cache and size <= self._free_bytes:
            self._cache[block, sample] = state
            self._free_bytes -= size


def _write(state: State, path: Path) -> None:
    with atomic_path(path) as temporary:  # `write_tensors` flushes the data, `seal` the names
        write_tensors(state, temporary)


def _size(state: State) -> int:
    return sum(tensor.nbytes for tensor in state.values())
