"""Statistics over all samples, taken in parts and joined in an order that is always the same.

Sums of floats depend on their order. So samples are cut into `CHUNKS` parts, whoever works on them;
a part is summed sample by sample, and the parts are joined by a pairwise tree. One process and
several then find the same, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..common.distributed import Communicator
from .observers import Sum

CHUNKS = 8

Watch = Callable[[Sequence[int]], list[Sum]]
"""Shows some samples to new observers and returns these; of no samples, they are as they began."""


def chunks(count: int) -> list[range]:
    """Numbers of `count` samples, cut into `CHUNKS` parts as equal as can be."""
    bounds = [part * count // CHUNKS for part in range(CHUNKS + 1)]
    return [range(bounds[part], bounds[part + 1]) for part in range(CHUNKS)]


def owner(part: int, comm: Communicator) -> int:
    """The process that works on a part."""
    return part * comm.count // CHUNKS


class Reduction:
    """What observers see of all samples.

    Args:
        comm: who shares the work.
        parts: samples of each of the `CHUNKS` parts.
        watch: called with the samples of this process, part by part.
    """

    def __init__(self, comm: Communicator, parts: Sequence[Sequence[int]], watch: Watch) -> None:
        self._comm, self._parts, self._watch = comm, parts, watch
        self._mine: dict[tuple[int, int], list[Sum]] = {}

    def run(self) -> list[Sum]:
        """Observers that know what those of all processes saw, in every process."""
        self._observe(0, CHUNKS)  # first all that needs nobody else
        found = self._tree(0, CHUNKS)
        if not self._has(0, CHUNKS):
            return self._watch(())
        return self._shared(found, self._holder(0, CHUNKS))

    def _has(self, begin: int, end: int) -> bool:
        return any(self._parts[begin:end])

    def _holder(self, begin: int, end: int) -> int:
        """The process that has the sum of some parts: it works on the first that is not empty."""
        part = next(part for part in range(begin, end) if self._parts[part])
        return owner(part, self._comm)

    def _observe(self, begin: int, end: int) -> None:
        owners = {owner(part, self._comm) for part in range(begin, end)}
        if self._comm.index not in owners:
            return
        if len(owners) > 1:
            middle = (begin + end) // 2
            self._observe(begin, middle)
            self._observe(middle, end)
        elif self._has(begin, end):
            self._mine[begin, end] = found = self._local(begin, end)
            if self._comm.count > 1:
                _rest(found)

    def _local(self, begin: int, end: int) -> list[Sum]:
        """The sum of parts that are all of this process."""
        if end - begin == 1:
            return self._watch(self._parts[begin])
        middle = (begin + end) // 2
        if not self._has(begin, middle):
            return self._local(middle, end)
        left = self._local(begin, middle)
        if self._has(middle, end):
            _rest(left)
            _add(left, self._local(middle, end))
        return left

    def _tree(self, begin: int, end: int) -> list[Sum] | None:
        """The sum of some parts; None if another process has it, or they are empty."""
        if owner(begin, self._comm) == owner(end - 1, self._comm):
            return self._mine.pop((begin, end), None)
        middle = (begin + end) // 2
        left, right = self._tree(begin, middle), self._tree(middle, end)
        if not self._has(begin, middle) or not self._has(middle, end):
            return left or right
        to, source = self._holder(begin, middle), self._holder(middle, end)
        if left and to != source:
            right = self._received(source)
        if left and right:
            _add(left, right)
        elif right:
            _transfer(right, lambda tensor: self._comm.send(tensor, to))
        return left

    def _received(self, source: int) -> list[Sum]:
        found = self._watch(())
        _transfer(found, lambda tensor: self._comm.receive(tensor, source))
        return found

    def _shared(self, found: list[Sum] | None, holder: int) -> list[Sum]:
        shared = self._watch(()) if found is None else found
        if self._comm.count > 1:
            _transfer(shared, lambda tensor: self._comm.broadcast(tensor, holder))
        return shared


def _transfer(observers: Sequence[Sum], move: Callable[[Tensor], None]) -> None:
    """Have a transfer read or fill all that observers know, tensor by tensor."""
    for observer in observers:
        observer.rest()
        tensors = observer.state()
        for tensor in tensors:
            move(tensor)
        observer.restore(tensors)


def _rest(observers: Sequence[Sum]) -> None:
    for observer in observers:
        observer.rest()


def _add(left: Sequence[Sum], right: Sequence[Sum]) -> None:
    for observer, other in zip(left, right, strict=True):
        observer.add(other)
