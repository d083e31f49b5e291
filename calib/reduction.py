"""Deterministic reduction: fixed shards, pairwise tree, independent of the number of ranks.

Sums of floats depend on their order. Samples are therefore always split into `SHARDS` shards; each
shard is summed sample by sample, and the shards are merged by a binary tree of fixed shape. One
rank and several ranks compute the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..common.distributed import Communicator
from .observers import Statistics

SHARDS = 8
"""Number of shards, and the most ranks that can share the samples. It is part of the result."""

Observe = Callable[[Sequence[int]], list[Statistics]]
"""Creates observers, updates them with some samples and returns them; there may be no samples."""


def shard_samples(count: int) -> list[range]:
    """Split the numbers of `count` samples into `SHARDS` ranges of nearly equal length."""
    bounds = [shard * count // SHARDS for shard in range(SHARDS + 1)]
    return [range(bounds[shard], bounds[shard + 1]) for shard in range(SHARDS)]


def shard_rank(shard: int, comm: Communicator) -> int:
    """Return the rank that observes a shard."""
    return shard * comm.world_size // SHARDS


class Reduction:
    """Statistics over the samples of all ranks.

    A node of the tree is a range of shards, `begin` to `end`. Nodes whose shards belong to one rank
    are summed by that rank without communication; at the nodes above them, the right half is sent
    to the rank of the left half.

    Args:
        comm: ranks that share the work.
        shards: samples of each of the `SHARDS` shards.
        observe: called with the samples of this rank, shard by shard.
    """

    def __init__(
        self, comm: Communicator, shards: Sequence[Sequence[int]], observe: Observe
    ) -> None:
        self._comm, self._shards, self._observe = comm, shards, observe
        self._local_nodes: dict[tuple[int, int], list[Statistics]] = {}

    def run(self) -> list[Statistics]:
        """Return the merged statistics of all samples on every rank."""
        # All samples are observed before anything is sent, so that ranks wait only once.
        self._observe_nodes(0, SHARDS)
        root = self._merge_nodes(0, SHARDS)
        if not self._has_samples(0, SHARDS):
            return self._observe(())
        return self._broadcast(root, self._holder(0, SHARDS))

    def _has_samples(self, begin: int, end: int) -> bool:
        return any(self._shards[begin:end])

    def _holder(self, begin: int, end: int) -> int:
        """Return the rank that holds the sum of a node: that of its first shard with samples."""
        shard = next(shard for shard in range(begin, end) if self._shards[shard])
        return shard_rank(shard, self._comm)

    def _observe_nodes(self, begin: int, end: int) -> None:
        """Observe and sum the largest nodes below this one that belong to this rank alone."""
        ranks = {shard_rank(shard, self._comm) for shard in range(begin, end)}
        if self._comm.rank not in ranks:
            return
        if len(ranks) > 1:
            middle = (begin + end) // 2
            self._observe_nodes(begin, middle)
            self._observe_nodes(middle, end)
        elif self._has_samples(begin, end):
            self._local_nodes[begin, end] = node = self._sum_local(begin, end)
            if self._comm.world_size > 1:
                _pack(node)

    def _sum_local(self, begin: int, end: int) -> list[Statistics]:
        """Observe and sum the shards of a node that belongs to this rank."""
        if end - begin == 1:
            return self._observe(self._shards[begin])
        middle = (begin + end) // 2
        if not self._has_samples(begin, middle):
            return self._sum_local(middle, end)
        left = self._sum_local(begin, middle)
        if self._has_samples(middle, end):
            _pack(left)  # idle while the right half is observed
            _merge(left, self._sum_local(middle, end))
        return left

    def _merge_nodes(self, begin: int, end: int) -> list[Statistics] | None:
        """Sum a node over ranks; return None if another rank holds it, or it has no samples."""
        if shard_rank(begin, self._comm) == shard_rank(end - 1, self._comm):
            return self._local_nodes.pop((begin, end), None)
        middle = (begin + end) // 2
        left, right = self._merge_nodes(begin, middle), self._merge_nodes(middle, end)
        if not self._has_samples(begin, middle) or not self._has_samples(middle, end):
            return left or right
        target, source = self._holder(begin, middle), self._holder(middle, end)
        if left and target != source:
            right = self._receive(source)
        if left and right:
            _merge(left, right)
        elif right:
            _transfer(right, lambda tensor: self._comm.send(tensor, target))
        return left

    def _receive(self, source: int) -> list[Statistics]:
        statistics = self._observe(())
        _transfer(statistics, lambda tensor: self._comm.receive(tensor, source))
        return statistics

    def _broadcast(self, root: list[Statistics] | None, holder: int) -> list[Statistics]:
        statistics = self._observe(()) if root is None else root
        if self._comm.world_size > 1:
            _transfer(statistics, lambda tensor: self._comm.broadcast(tensor, holder))
        return statistics


def _transfer(statistics: Sequence[Statistics], move: Callable[[Tensor], None]) -> None:
    """Call `move`, which reads or fills a tensor, on all tensors of the statistics."""
    for item in statistics:
        item.pack()
        tensors = item.state()
        for tensor in tensors:
            move(tensor)
        item.restore(tensors)


def _pack(statistics: Sequence[Statistics]) -> None:
    for item in statistics:
        item.pack()


def _merge(left: Sequence[Statistics], right: Sequence[Statistics]) -> None:
    for item, other in zip(left, right, strict=True):
        item.merge(other)
