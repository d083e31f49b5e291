"""Sums over samples that do not depend on who takes them."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakSet

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks_of_threads import OfThread, together
from torch import Tensor

from vlpress.calib.observers import AbsMax, CrossMoment, Hessian, MeanAbs, Sum
from vlpress.calib.packed_symmetric import PackedSymmetric
from vlpress.calib.reduction import CHUNKS, Reduction, chunks, owner
from vlpress.common.distributed import SINGLE_PROCESS, Communicator

WIDTH = 7


def sample(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(3 + number % 4, WIDTH, generator=generator) * (1 + number)


def watch(samples: Sequence[int]) -> list[Sum]:
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


def reduced(comm: Communicator, parts: Sequence[Sequence[int]]) -> list[Tensor]:
    hessian, cross, largest, mean = Reduction(comm, parts, watch).run()
    assert isinstance(hessian, Hessian) and isinstance(cross, CrossMoment)
    assert isinstance(largest, AbsMax) and isinstance(mean, MeanAbs)
    counts = [hessian.weight, hessian.tokens, hessian.extent.low, hessian.extent.high, mean.weight]
    values = [hessian.values, cross.values, largest.values, mean.values]
    return [*values, torch.tensor(counts, dtype=torch.float64)]


@given(count=st.integers(0, 100))
def test_chunks_hold_every_sample_once_and_are_even(count: int) -> None:
    parts = chunks(count)
    assert len(parts) == CHUNKS
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 11])
def test_every_part_has_an_owner_and_each_process_a_fair_stretch(count: int) -> None:
    owners = [owner(part, OfThread(0, count, {})) for part in range(CHUNKS)]
    assert owners == sorted(owners) and 0 <= owners[0] and owners[-1] < count
    shares = [owners.count(i) for i in range(count)]
    assert max(shares) <= -(-CHUNKS // count)


@settings(max_examples=30, deadline=None)
@given(
    taken=st.sets(st.integers(0, 30)),
    total=st.integers(1, 31),
    count=st.integers(2, 10),
)
def test_several_find_what_one_finds_to_the_last_bit(
    taken: set[int], total: int, count: int
) -> None:
    parts = [[i for i in part if i in taken] for part in chunks(total)]
    alone = reduced(SINGLE_PROCESS, parts)
    for found in together(count, lambda comm: reduced(comm, parts)):
        assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))


def test_the_sum_is_that_of_all_samples() -> None:
    found = reduced(SINGLE_PROCESS, chunks(20))
    everything = watch(range(20))
    wanted = [observer.values for observer in everything]  # type: ignore[attr-defined]
    for value, other in zip(found[:4], wanted, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-5)
    hessian = everything[0]
    assert isinstance(hessian, Hessian)
    assert found[4].tolist()[1:4] == [hessian.tokens, hessian.extent.low, hessian.extent.high]


def test_a_process_watches_only_its_own_samples() -> None:
    def mine(comm: Communicator) -> list[int]:
        seen: list[int] = []

        def note(samples: Sequence[int]) -> list[Sum]:
            seen.extend(samples)
            return watch(samples)

        Reduction(comm, chunks(16), note).run()
        return seen

    assert together(3, mine) == [list(range(6)), list(range(6, 12)), list(range(12, 16))]


def test_what_waits_takes_half_of_its_memory() -> None:
    width, most = 2048, 0
    alive: WeakSet[PackedSymmetric] = WeakSet()

    def measure(samples: Sequence[int]) -> list[Sum]:
        nonlocal most
        hessian = Hessian(width)
        alive.add(hessian._sum)
        most = max(most, sum(_bytes(square) for square in alive))
        return [hessian]

    Reduction(SINGLE_PROCESS, chunks(8), measure).run()
    assert most <= 4 * width**2 * (1 + 3 * 0.76)  # one at work, three of the tree waiting


def _bytes(square: PackedSymmetric) -> int:
    held = square._folded if square._whole is None else [square._whole]
    return sum(tensor.untyped_storage().nbytes() for tensor in held)
