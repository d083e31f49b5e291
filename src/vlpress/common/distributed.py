"""Several processes that share one piece of work, as torchrun starts them.

Every process runs the same program on its share. What one has found reaches the others as JSON and
tensors; nothing is pickled. Work by one process alone is the same program with nobody to talk to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from .heartbeat import Heartbeat

T = TypeVar("T")
Job = TypeVar("Job")

# A process may solve a large layer for long while others wait; those that die are found otherwise.
COLLECTIVE_TIMEOUT = timedelta(days=7)
CLOSED = "another process of this run ended; the same command goes on where it stopped"


@dataclass(frozen=True)
class Message:
    """What one process tells the others."""

    value: Any = None
    """A JSON value."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Communicator(Protocol):
    """The processes that share a piece of work."""

    @property
    def index(self) -> int:
        """Which of them this is; the first one, 0, writes."""
        ...

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def send(self, tensor: Tensor, to: int) -> None:
        """Give a contiguous tensor to another process, which must `receive` it."""
        ...

    def receive(self, tensor: Tensor, source: int) -> None:
        """Fill a contiguous tensor with what another process sends."""
        ...

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Fill a contiguous tensor, everywhere, with what it holds in one process."""
        ...

    def broadcast_message(self, message: Message | None, source: int) -> Message:
        """Give one process's message to all; the others pass None."""
        ...


class SingleProcess:
    """One process."""

    index = 0
    count = 1

    def send(self, tensor: Tensor, to: int) -> None:
        """See `Communicator.send`; there is nobody."""
        raise ValueError(f"there is no process {to}")

    def receive(self, tensor: Tensor, source: int) -> None:
        """See `Communicator.receive`; there is nobody."""
        raise ValueError(f"there is no process {source}")

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """See `Communicator.broadcast`."""

    def broadcast_message(self, message: Message | None, source: int) -> Message:
        """See `Communicator.broadcast_message`."""
        assert message is not None
        return message


SINGLE_PROCESS = SingleProcess()


class TorchCommunicator:
    """Processes joined by torch.distributed."""

    def __init__(self) -> None:
        self.index, self.count = dist.get_rank(), dist.get_world_size()

    def send(self, tensor: Tensor, to: int) -> None:
        """See `Communicator.send`."""
        with _reached():
            dist.send(tensor, to)

    def receive(self, tensor: Tensor, source: int) -> None:
        """See `Communicator.receive`."""
        with _reached():
            dist.recv(tensor, source)

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """See `Communicator.broadcast`."""
        with _reached():
            dist.broadcast(tensor, source)

    def broadcast_message(self, message: Message | None, source: int) -> Message:
        """See `Communicator.broadcast_message`; tensors arrive in the memory of the CPU."""
        data = torch.empty(0, dtype=torch.uint8)
        if message is not None:
            tensors = {name: tensor.contiguous() for name, tensor in message.tensors.items()}
            packed = save(tensors, {"value": json.dumps(message.value)})
            data = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
        size = torch.tensor([len(data)])
        self.broadcast(size, source)
        if message is None:
            data = torch.empty(int(size), dtype=torch.uint8)
        self.broadcast(data, source)
        return message or _unpacked(data.numpy().tobytes())


def _unpacked(packed: bytes) -> Message:
    length = int.from_bytes(packed[:8], "little")
    header = json.loads(packed[8 : 8 + length])
    return Message(json.loads(header["__metadata__"]["value"]), load(packed))


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # all that torch.distributed raises when a connection closes
        raise ConnectionAbortedError(CLOSED) from error


def rank_zero_first(comm: Communicator, work: Callable[[], T]) -> T:
    """Do something in the first process and, once that is done, in all others.

    If it raises in the first one, the others are told nothing and end when that one does.
    """
    if comm.index == 0:
        result = work()
        comm.broadcast_message(Message(), 0)
        return result
    comm.broadcast_message(None, 0)
    return work()


def broadcast_result(comm: Communicator, work: Callable[[], Any]) -> Any:
    """Do something in the first process alone; all get what it returns, a JSON value."""
    return comm.broadcast_message(Message(work()) if comm.index == 0 else None, 0).value


def wait(comm: Communicator) -> None:
    """Go on when all processes have come here."""
    all_gather(comm, None)


def all_gather(comm: Communicator, value: Any) -> list[Any]:
    """A JSON value of every process, in order, for all."""
    return [
        comm.broadcast_message(Message(value) if source == comm.index else None, source).value
        for source in range(comm.count)
    ]


def distribute(
    comm: Communicator, jobs: Iterable[Job], work: Callable[[Job], Message]
) -> Iterator[tuple[Job, Message]]:
    """Jobs in order, each with what one of the processes made of it.

    Whoever iterates must do so in every process.
    """
    waiting = iter(jobs)
    while hand := list(islice(waiting, comm.count)):
        mine = work(hand[comm.index]) if comm.index < len(hand) else None
        for source, job in enumerate(hand):
            yield job, comm.broadcast_message(mine if source == comm.index else None, source)
    wait(comm)  # what was done with the last one is done everywhere


@contextmanager
def init_distributed() -> Iterator[Communicator]:
    """The processes that torchrun started with this one, for the length of a `with` block.

    Raises:
        ConnectionAbortedError: one of them ended meanwhile.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or not dist.is_torchelastic_launched():
        yield SINGLE_PROCESS
        return
    index = int(os.environ["RANK"])
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    with _reached():
        store = TCPStore(*place, is_master=False)
        dist.init_process_group(
            backend,
            store=PrefixStore("vlpress", store),
            rank=index,
            world_size=count,
            timeout=COLLECTIVE_TIMEOUT,
        )
    together = TorchCommunicator()
    with Heartbeat(TCPStore(*place, is_master=False), index, count, CLOSED):
        yield together
        wait(together)  # nobody leaves before all are done
    dist.destroy_process_group()
