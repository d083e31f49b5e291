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

from .heartbeat import Pulse

T = TypeVar("T")
Job = TypeVar("Job")

# A process may solve a large layer for long while others wait; those that die are found otherwise.
PATIENCE = timedelta(days=7)
CLOSED = "another process of this run ended; the same command goes on where it stopped"


@dataclass(frozen=True)
class Message:
    """What one process tells the others."""

    value: Any = None
    """A JSON value."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Ranks(Protocol):
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

    def tell(self, message: Message | None, source: int) -> Message:
        """Give one process's message to all; the others pass None."""
        ...


class Alone:
    """One process."""

    index = 0
    count = 1

    def send(self, tensor: Tensor, to: int) -> None:
        """See `Ranks.send`; there is nobody."""
        raise ValueError(f"there is no process {to}")

    def receive(self, tensor: Tensor, source: int) -> None:
        """See `Ranks.receive`; there is nobody."""
        raise ValueError(f"there is no process {source}")

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """See `Ranks.broadcast`."""

    def tell(self, message: Message | None, source: int) -> Message:
        """See `Ranks.tell`."""
        assert message is not None
        return message


ALONE = Alone()


class Together:
    """Processes joined by torch.distributed."""

    def __init__(self) -> None:
        self.index, self.count = dist.get_rank(), dist.get_world_size()

    def send(self, tensor: Tensor, to: int) -> None:
        """See `Ranks.send`."""
        with _reached():
            dist.send(tensor, to)

    def receive(self, tensor: Tensor, source: int) -> None:
        """See `Ranks.receive`."""
        with _reached():
            dist.recv(tensor, source)

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """See `Ranks.broadcast`."""
        with _reached():
            dist.broadcast(tensor, source)

    def tell(self, message: Message | None, source: int) -> Message:
        """See `Ranks.tell`; tensors arrive in the memory of the CPU."""
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


def led(ranks: Ranks, work: Callable[[], T]) -> T:
    """Do something in the first process and, once that is done, in all others.

    If it raises in the first one, the others are told nothing and end when that one does.
    """
    if ranks.index == 0:
        result = work()
        ranks.tell(Message(), 0)
        return result
    ranks.tell(None, 0)
    return work()


def first(ranks: Ranks, work: Callable[[], Any]) -> Any:
    """Do something in the first process alone; all get what it returns, a JSON value."""
    return ranks.tell(Message(work()) if ranks.index == 0 else None, 0).value


def wait(ranks: Ranks) -> None:
    """Go on when all processes have come here."""
    gathered(ranks, None)


def gathered(ranks: Ranks, value: Any) -> list[Any]:
    """A JSON value of every process, in order, for all."""
    return [
        ranks.tell(Message(value) if source == ranks.index else None, source).value
        for source in range(ranks.count)
    ]


def dealt(
    ranks: Ranks, jobs: Iterable[Job], work: Callable[[Job], Message]
) -> Iterator[tuple[Job, Message]]:
    """Jobs in order, each with what one of the processes made of it.

    Whoever iterates must do so in every process.
    """
    waiting = iter(jobs)
    while hand := list(islice(waiting, ranks.count)):
        mine = work(hand[ranks.index]) if ranks.index < len(hand) else None
        for source, job in enumerate(hand):
            yield job, ranks.tell(mine if source == ranks.index else None, source)
    wait(ranks)  # what was done with the last one is done everywhere


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun started with this one, for the length of a `with` block.

    Raises:
        ConnectionAbortedError: one of them ended meanwhile.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or not dist.is_torchelastic_launched():
        yield ALONE
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
            timeout=PATIENCE,
        )
    together = Together()
    with Pulse(TCPStore(*place, is_master=False), index, count, CLOSED):
        yield together
        wait(together)  # nobody leaves before all are done
    dist.destroy_process_group()
