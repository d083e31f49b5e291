import pytest
import torch

from vlpress.calib import packed_symmetric
from vlpress.calib.packed_symmetric import PackedSymmetric


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_symmetric, "BLOCK_ROWS", 3)


def filled(size: int, seed: int) -> tuple[PackedSymmetric, torch.Tensor]:
    x = torch.randn(size + 2, size, generator=torch.Generator().manual_seed(seed))
    values, made = x.t() @ x, PackedSymmetric(size)
    made.lower().copy_(values.tril())
    return made, (values.tril() + values.tril(-1).t())


@pytest.mark.parametrize("size", [1, 3, 7, 9])
def test_packing_is_lossless(size: int) -> None:
    made, values = filled(size, 0)
    made.pack()
    assert all(block.is_contiguous() for block in made.row_blocks())
    assert torch.equal(made.full(), values)
    made.pack()
    made.pack()
    assert torch.equal(made.lower().tril(), values.tril())


def test_the_lower_triangle_is_mirrored() -> None:
    made = PackedSymmetric(4)
    made.lower().copy_(torch.full((4, 4), 9.0).triu(1) + torch.arange(16.0).reshape(4, 4).tril())
    assert torch.equal(made.full(), made.full().t())
    assert made.full()[0].tolist() == [0.0, 4.0, 8.0, 12.0]


@pytest.mark.parametrize("packed", [(False, False), (True, False), (False, True), (True, True)])
def test_a_weighted_sum_has_the_same_bits_in_either_form(packed: tuple[bool, bool]) -> None:
    (left, a), (right, b) = filled(8, 1), filled(8, 2)
    for made, is_packed in zip((left, right), packed, strict=True):
        if is_packed:
            made.pack()
    total = left.weighted_sum(right, 0.3, 0.7).full()
    assert torch.equal(total, a * 0.3 + b * 0.7)


def test_packed_it_takes_about_half() -> None:
    made, _ = filled(30, 0)
    made.pack()
    assert sum(block.nbytes for block in made.row_blocks()) <= 4 * 30 * 30 * 0.56
    assert made._square is None


def test_buffers_of_packed_matrices_are_reused() -> None:
    free: list[torch.Tensor] = []
    first = PackedSymmetric(8, free_buffers=free)
    address = first.lower().data_ptr()
    first.lower().fill_(3.0)
    first.pack()
    second, other = PackedSymmetric(8, free_buffers=free), PackedSymmetric(5, free_buffers=free)
    assert second.lower().data_ptr() == address and not free
    assert not second.full().any() and not other.full().any()
    assert bool((first.full() == 3).all())
