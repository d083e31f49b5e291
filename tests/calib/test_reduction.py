"""The reduction over samples is independent of the number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakSet

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks_of_threads import ThreadCommunicator, run_ranks
from torch import Tensor

from vlpress.calib.observers import AbsMax, CrossMoment, Hessian, MeanAbs, Statistics
from vlpress.calib.packed_symmetric import PackedSymmetric
from vlpress.calib.reduction import SHARDS, Reduction, shard_rank, shard_samples
from vlpress.common.distributed import SINGLE_PROCESS, Communicator

WIDTH = 7


def sample(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(3 + number % 4, WIDTH, generator=generator) * (1 + number)


def observe(samples: Sequence[int]) -> list[Statistics]:
    hessian, cross = Hessian(WIDTH), CrossMoment(WIDTH)
    largest, mean = AbsMax(WIDTH), MeanAbs(WIDTH)
    for number in samples:
        tokens = sample(number)
        weights = torch.rand(len(tokens), generator=torch.Generator().manual_seed(number))
        hessian.update(tokens, weights)
        cross.update(tokens, tokens.roll(1, 0), weights)
        largest.update(tokens, weights)
        mean.update(tokens, weights)
    return [hessian, cross, largest, mean]


def reduced(comm: Communicator, shards: Sequence[Sequence[int]]) -> list[Tensor]:
    hessian, cross, largest, mean = Reduction(comm, shards, observe).run()
    assert isinstance(hessian, Hessian) and isinstance(cross, CrossMoment)
    assert isinstance(largest, AbsMax) and isinstance(mean, MeanAbs)
    bounds = hessian.input_range.low, hessian.input_range.high
    counts = [hessian.weight, hessian.tokens, *bounds, mean.weight]
    values = [hessian.values, cross.values, largest.values, mean.values]
    return [*values, torch.tensor(counts, dtype=torch.float64)]


@given(count=st.integers(0, 100))
def test_shards_hold_every_sample_once_and_are_even(count: int) -> None:
    shards = shard_samples(count)
    assert len(shards) == SHARDS
    assert [i for shard in shards for i in shard] == list(range(count))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8, 11])
def test_shards_are_spread_evenly_over_ranks(world_size: int) -> None:
    comm = ThreadCommunicator(0, world_size, {})
    ranks = [shard_rank(shard, comm) for shard in range(SHARDS)]
    assert ranks == sorted(ranks) and 0 <= ranks[0] and ranks[-1] < world_size
    assert max(map(ranks.count, ranks)) <= -(-SHARDS // world_size)


@settings(max_examples=30, deadline=None)
@given(
    selected=st.sets(st.integers(0, 30)),
    count=st.integers(1, 31),
    world_size=st.integers(2, 10),
)
def test_several_ranks_compute_the_bits_of_one(
    selected: set[int], count: int, world_size: int
) -> None:
    shards = [[i for i in shard if i in selected] for shard in shard_samples(count)]
    of_one = reduced(SINGLE_PROCESS, shards)
    for of_rank in run_ranks(world_size, lambda comm: reduced(comm, shards)):
        assert all(torch.equal(a, b) for a, b in zip(of_one, of_rank, strict=True))


def test_the_sum_is_that_of_all_samples() -> None:
    *values, counts = reduced(SINGLE_PROCESS, shard_samples(20))
    observers = observe(range(20))
    expected = [observer.values for observer in observers]  # type: ignore[attr-defined]
    for value, other in zip(values, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-5)
    hessian = observers[0]
    assert isinstance(hessian, Hessian)
    bounds = [hessian.input_range.low, hessian.input_range.high]
    assert counts.tolist()[1:4] == [hessian.tokens, *bounds]


def test_a_rank_observes_its_own_samples_only() -> None:
    def observed_by(comm: Communicator) -> list[int]:
        observed: list[int] = []

        def record(samples: Sequence[int]) -> list[Statistics]:
            observed.extend(samples)
            return observe(samples)

        Reduction(comm, shard_samples(16), record).run()
        return observed

    assert run_ranks(3, observed_by) == [list(range(6)), list(range(6, 12)), list(range(12, 16))]


def test_idle_hessians_take_half_of_the_memory() -> None:
    width, most = 2048, 0
    alive: WeakSet[PackedSymmetric] = WeakSet()

    def measure(samples: Sequence[int]) -> list[Statistics]:
        nonlocal most
        hessian = Hessian(width)
        alive.add(hessian._sum)
        most = max(most, sum(_bytes(matrix) for matrix in alive))
        return [hessian]

    Reduction(SINGLE_PROCESS, shard_samples(8), measure).run()
    assert most <= 4 * width**2 * (1 + 3 * 0.76)  # one is updated, three of the tree are idle


def _bytes(matrix: PackedSymmetric) -> int:
    tensors = matrix._packed if matrix._square is None else [matrix._square]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)
