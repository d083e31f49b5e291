import pytest
import torch

from vlpress.calib import packed_symmetric
from vlpress.calib.packed_symmetric import PackedSymmetric


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_symmetric, "ROWS", 3)


def filled(size: int, seed: int) -> tuple[PackedSymmetric, torch.Tensor]:
    x = torch.randn(size + 2, size, generator=torch.Generator().manual_seed(seed))
    values, made = x.t() @ x, PackedSymmetric(size)
    made.lower().copy_(values.tril())
    return made, (values.tril() + values.tril(-1).t())


@pytest.mark.parametrize("size", [1, 3, 7, 9])
def test_folding_loses_nothing(size: int) -> None:
    made, values = filled(size, 0)
    made.fold()
    assert all(piece.is_contiguous() for piece in made.pieces())
    assert torch.equal(made.mirrored(), values)
    made.fold()
    made.fold()
    assert torch.equal(made.lower().tril(), values.tril())


def test_the_lower_half_is_what_is_mirrored() -> None:
    made = PackedSymmetric(4)
    made.lower().copy_(torch.full((4, 4), 9.0).triu(1) + torch.arange(16.0).reshape(4, 4).tril())
    assert torch.equal(made.mirrored(), made.mirrored().t())
    assert made.mirrored()[0].tolist() == [0.0, 4.0, 8.0, 12.0]


@pytest.mark.parametrize("folded", [(False, False), (True, False), (False, True), (True, True)])
def test_a_weighted_sum_has_the_same_bits_however_both_lie(folded: tuple[bool, bool]) -> None:
    (left, a), (right, b) = filled(8, 1), filled(8, 2)
    for made, fold in zip((left, right), folded, strict=True):
        if fold:
            made.fold()
    found = left.plus(right, 0.3, 0.7).mirrored()
    assert torch.equal(found, a * 0.3 + b * 0.7)


def test_folded_it_takes_about_half() -> None:
    made, _ = filled(30, 0)
    made.fold()
    assert sum(piece.nbytes for piece in made.pieces()) <= 4 * 30 * 30 * 0.56
    assert made._whole is None


def test_memory_of_a_folded_one_is_taken_again() -> None:
    spare: list[torch.Tensor] = []
    first = PackedSymmetric(8, spare=spare)
    place = first.lower().data_ptr()
    first.lower().fill_(3.0)
    first.fold()
    second, other = PackedSymmetric(8, spare=spare), PackedSymmetric(5, spare=spare)
    assert second.lower().data_ptr() == place and not spare
    assert not second.mirrored().any() and not other.mirrored().any()
    assert bool((first.mirrored() == 3).all())
