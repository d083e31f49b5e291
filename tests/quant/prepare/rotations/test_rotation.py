"""Hadamard matrices of all orders, and random rotations."""

from __future__ import annotations

import pytest
import torch

from vlpress.quant.prepare.rotations.hadamard import decompose, hadamard
from vlpress.quant.prepare.rotations.rotation import Rotation, describe


@pytest.mark.parametrize("order", [1, 4, 12, 20, 24, 28, 36, 44, 60, 76])
def test_hadamard_matrices_are_orthogonal_with_entries_of_size_1(order: int) -> None:
    matrix = hadamard(order)
    assert matrix.shape == (order, order) and torch.equal(matrix.abs(), torch.ones_like(matrix))
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


def test_widths_of_published_models_are_known() -> None:
    widths = {896: (28, 32), 1536: (12, 128), 2048: (1, 2048), 2560: (20, 128), 3584: (28, 128)}
    assert {width: decompose(width) for width in widths} == widths
    assert decompose(5120) == (20, 256) and decompose(128) == (1, 128)
    assert decompose(52) is None and decompose(6) is None
    with pytest.raises(ValueError, match="order 52"):
        hadamard(52)


@pytest.mark.parametrize(
    ("size", "label"), [(64, "Hadamard 64"), (40, "Hadamard 20 x 2"), (52, "random orthogonal 52")]
)
def test_rotations(size: int, label: str) -> None:
    rotation = Rotation.random(size, "a")
    matrix = rotation.matrix()
    assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-14)
    rows = torch.randn(3, 2, size, dtype=torch.float64)
    assert torch.allclose(rotation.apply(rows), rows @ matrix, atol=1e-13)
    assert rotation.label == describe(size) == label
    assert torch.equal(Rotation.random(size, "a").matrix(), matrix)
    assert not torch.allclose(Rotation.random(size, "b").matrix(), matrix)


def test_an_outlier_is_spread_over_all_channels() -> None:
    row = torch.zeros(1, 64, dtype=torch.float64)
    row[0, 5] = 8.0
    spread = Rotation.random(64, "").apply(row)
    assert torch.allclose(spread.abs(), torch.ones_like(spread))
