"""Work shared by several processes (ranks) that torchrun started.

Every rank runs the same program on its share of the work. Results are exchanged as JSON and
tensors, nothing is pickled. A single process uses the no-op communicator.
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

# One rank may solve a large layer for minutes; dead ranks are detected by `heartbeat`.
COLLECTIVE_TIMEOUT = timedelta(days=7)
RANK_LOST = "another process of this run ended; rerun the same command to resume"


@dataclass(frozen=True)
class Message:
    """A result that one rank sends to others."""

    value: Any = None
    """A JSON value."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Communicator(Protocol):
    """The ranks that share a piece of work."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0; rank 0 writes the results."""
        ...

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        ...

    def send(self, tensor: Tensor, to: int) -> None:
        """Send a contiguous tensor to rank `to`, which must call `receive`."""
        ...

    def receive(self, tensor: Tensor, source: int) -> None:
        """Fill a contiguous tensor with the one that rank `source` sends."""
        ...

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Fill a contiguous tensor on all ranks with the values of rank `source`."""
        ...

    def broadcast_message(self, message: Message | None, source: int) -> Message:
        """Return the message of rank `source` on all ranks; the others pass None."""
        ...


class SingleProcess:
    """The no-op communicator of a single process."""

    rank = 0
    world_size = 1

    def send(self, tensor: Tensor, to: int) -> None:
        """See `Communicator.send`; there is no other rank."""
        raise ValueError(f"cannot send to rank {to}: there is only rank 0")

    def receive(self, tensor: Tensor, source: int) -> None:
        """See `Communicator.receive`; there is no other rank."""
        raise ValueError(f"cannot receive from rank {source}: there is only rank 0")

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """See `Communicator.broadcast`."""

    def broadcast_message(self, message: Message | None, source: int) -> Message:
        """See `Communicator.broadcast_message`."""
        assert message is not None
        return message


SINGLE_PROCESS = SingleProcess()


class TorchCommunicator:
    """Ranks connected by torch.distributed."""

    def __init__(self) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def send(self, tensor: Tensor, to: int) -> None:
        """See `Communicator.send`."""
        with _connection_errors():
            dist.send(tensor, to)

    def receive(self, tensor: Tensor, source: int) -> None:
        """See `Communicator.receive`."""
        with _connection_errors():
            dist.recv(tensor, source)

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """See `Communicator.broadcast`."""
        with _connection_errors():
            dist.broadcast(tensor, source)

    def broadcast_message(self, message: Message | None, source: int) -> Message:
        """See `Communicator.broadcast_message`; tensors arrive on the CPU."""
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
        return message or _unpack(data.numpy().tobytes())


def _unpack(packed: bytes) -> Message:
    """Read a message from the bytes of a safetensors file with a `value` in its metadata."""
    length = int.from_bytes(packed[:8], "little")
    header = json.loads(packed[8 : 8 + length])
    return Message(json.loads(header["__metadata__"]["value"]), load(packed))


@contextmanager
def _connection_errors() -> Iterator[None]:
    """Translate the RuntimeError of torch.distributed for a closed connection."""
    try:
        yield
    except RuntimeError as error:  # torch.distributed has no narrower type
        raise ConnectionAbortedError(RANK_LOST) from error


def rank_zero_first(comm: Communicator, action: Callable[[], T]) -> T:
    """Run `action` on rank 0 first, then on the other ranks; return its result.

    If it raises on rank 0, the others receive nothing and end when rank 0 does.
    """
    if comm.rank == 0:
        result = action()
        comm.broadcast_message(Message(), 0)
        return result
    comm.broadcast_message(None, 0)
    return action()


def broadcast_result(comm: Communicator, action: Callable[[], Any]) -> Any:
    """Run `action` on rank 0 only; return its result, a JSON value, on all ranks."""
    return comm.broadcast_message(Message(action()) if comm.rank == 0 else None, 0).value


def barrier(comm: Communicator) -> None:
    """Block until all ranks have called this."""
    all_gather(comm, None)


def all_gather(comm: Communicator, value: Any) -> list[Any]:
    """Return the JSON values of all ranks, in rank order, on all ranks."""
    return [
        comm.broadcast_message(Message(value) if source == comm.rank else None, source).value
        for source in range(comm.world_size)
    ]


def distribute(
    comm: Communicator, jobs: Iterable[Job], work: Callable[[Job], Message]
) -> Iterator[tuple[Job, Message]]:
    """Distribute jobs over ranks; yield `(job, result)` in job order.

    All ranks must iterate over the same jobs. Ranks work on one job each at a time, so that
    results are broadcast, and can be stored, in order.
    """
    remaining = iter(jobs)
    while batch := list(islice(remaining, comm.world_size)):
        result = work(batch[comm.rank]) if comm.rank < len(batch) else None
        for source, job in enumerate(batch):
            yield job, comm.broadcast_message(result if source == comm.rank else None, source)
    barrier(comm)  # the consumers of all ranks have finished with the last result


@contextmanager
def init_distributed() -> Iterator[Communicator]:
    """Connect the ranks that torchrun started, for the length of a `with` block.

    Raises:
        ConnectionAbortedError: a rank ended meanwhile.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1 or not dist.is_torchelastic_launched():
        yield SINGLE_PROCESS
        return
    rank = int(os.environ["RANK"])
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    with _connection_errors():
        store = TCPStore(*address, is_master=False)
        dist.init_process_group(
            backend,
            store=PrefixStore("vlpress", store),
            rank=rank,
            world_size=world_size,
            timeout=COLLECTIVE_TIMEOUT,
        )
    comm = TorchCommunicator()
    with Heartbeat(TCPStore(*address, is_master=False), rank, world_size, RANK_LOST):
        yield comm
        barrier(comm)  # no rank closes its connection while another one still works
    dist.destroy_process_group()
