"""Ranks as threads of one process, for tests of distributed work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

from torch import Tensor

from vlpress.common.distributed import Communicator, Message

T = TypeVar("T")


class ThreadCommunicator:
    """A communicator whose ranks are threads, connected by queues."""

    def __init__(self, rank: int, world_size: int, queues: Mapping[tuple[int, int], Any]) -> None:
        self.rank, self.world_size, self._queues = rank, world_size, queues

    def send(self, tensor: Tensor, to: int) -> None:
        assert tensor.is_contiguous()
        self._queues[self.rank, to].put(tensor.clone())

    def receive(self, tensor: Tensor, source: int) -> None:
        assert tensor.is_contiguous()
        tensor.copy_(self._queues[source, self.rank].get(timeout=60))

    def broadcast(self, tensor: Tensor, source: int) -> None:
        if self.rank != source:
            self.receive(tensor, source)
            return
        for to in range(self.world_size):
            if to != source:
                self.send(tensor, to)

    def broadcast_message(self, message: Message | None, source: int) -> Message:
        if self.rank != source:
            assert message is None
            received: Message = self._queues[source, self.rank].get(timeout=60)
            return received
        assert message is not None
        for to in range(self.world_size):
            if to != source:
                tensors = {name: tensor.clone() for name, tensor in message.tensors.items()}
                self._queues[source, to].put(Message(message.value, tensors))
        return message


def run_ranks(world_size: int, work: Callable[[Communicator], T]) -> list[T]:
    """Run `work` on every rank; return the results and check that every message was received."""
    queues: dict[tuple[int, int], SimpleQueue[Any]] = {
        (source, to): SimpleQueue() for source in range(world_size) for to in range(world_size)
    }
    with ThreadPoolExecutor(world_size) as pool:
        communicators = [ThreadCommunicator(r, world_size, queues) for r in range(world_size)]
        futures = [pool.submit(work, comm) for comm in communicators]
        results = [future.result() for future in futures]
    assert all(queue.empty() for queue in queues.values())
    return results
