"""Threads in the place of the processes that share a piece of work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

from torch import Tensor

from vlpress.common.distributed import Communicator, Message

T = TypeVar("T")


class OfThread:
    """What one thread sees of the others."""

    def __init__(self, index: int, count: int, queues: Mapping[tuple[int, int], Any]) -> None:
        self.index, self.count, self._queues = index, count, queues

    def send(self, tensor: Tensor, to: int) -> None:
        assert tensor.is_contiguous()
        self._queues[self.index, to].put(tensor.clone())

    def receive(self, tensor: Tensor, source: int) -> None:
        assert tensor.is_contiguous()
        tensor.copy_(self._queues[source, self.index].get(timeout=60))

    def broadcast(self, tensor: Tensor, source: int) -> None:
        if self.index != source:
            self.receive(tensor, source)
            return
        for to in range(self.count):
            if to != source:
                self.send(tensor, to)

    def broadcast_message(self, message: Message | None, source: int) -> Message:
        if self.index != source:
            assert message is None
            found: Message = self._queues[source, self.index].get(timeout=60)
            return found
        assert message is not None
        for to in range(self.count):
            if to != source:
                tensors = {name: tensor.clone() for name, tensor in message.tensors.items()}
                self._queues[source, to].put(Message(message.value, tensors))
        return message


def together(count: int, work: Callable[[Communicator], T]) -> list[T]:
    """What each of so many threads returns; nothing may be left unsaid."""
    queues: dict[tuple[int, int], SimpleQueue[Any]] = {
        (source, to): SimpleQueue() for source in range(count) for to in range(count)
    }
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(work, OfThread(i, count, queues)) for i in range(count)]
        results = [future.result() for future in futures]
    assert all(queue.empty() for queue in queues.values())
    return results
