"""Triangular factors of damped Hessians."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlpress.quant.methods.hessian.cholesky import COPY_ROWS, LADDER, Factor, find_factor, is_finite
from vlpress.quant.methods.layer_error import row_energy


def hessian_of(columns: int, seed: int = 0) -> Tensor:
    x = torch.randn(3 * columns, columns, generator=torch.Generator().manual_seed(seed))
    x = x @ torch.randn(columns, columns, generator=torch.Generator().manual_seed(seed + 1))
    return x.t() @ x / len(x)


def first(hessian: Tensor, order: Tensor, damp_percent: float = 0.01) -> Factor:
    factor = find_factor(hessian, order, torch.zeros(len(order)), damp_percent)
    assert factor is not None
    return factor


@pytest.mark.parametrize("columns", [1, 7, 96, COPY_ROWS + 9])
def test_the_factor_is_that_of_the_matrix_in_the_wanted_order(columns: int) -> None:
    hessian = hessian_of(columns)
    unchanged = hessian.clone()
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(2))
    factor = first(hessian, order)
    assert torch.equal(hessian, unchanged)
    lower = factor.lower.tril().double()
    expected = hessian[order][:, order].double() + torch.diag(factor.damping.double())
    torch.testing.assert_close(
        lower @ lower.t(), expected, rtol=1e-4, atol=1e-5 * float(expected.max())
    )
    mean = float(hessian.diagonal().mean())
    assert factor.damping.tolist() == pytest.approx([0.01 * mean] * columns)
    assert factor.fraction == 0.01 and factor.precision == "float32"


def test_energies_are_those_without_damping() -> None:
    hessian, order = hessian_of(80), torch.randperm(80)
    rows = torch.randn(11, 80)
    expected = row_energy(rows, hessian)
    energies = first(hessian, order, damp_percent=0.3).energies(rows[:, order])
    torch.testing.assert_close(energies, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


def test_missing_diagonals_are_added_to_the_damping() -> None:
    hessian = torch.diag(torch.tensor([4.0, 0.0, 2.0]))
    missing = torch.tensor([0.0, 3.0, 0.0])
    factor = find_factor(hessian, torch.tensor([1, 2, 0]), missing, damp_percent=0.1)
    assert factor is not None
    assert factor.damping.tolist() == pytest.approx([3.3, 0.3, 0.3])  # the mean is 3
    assert factor.lower.diagonal().square().tolist() == pytest.approx([3.3, 2.3, 4.3])


def test_the_ladder_climbs_until_a_factor_exists() -> None:
    hessian = torch.eye(8)
    hessian[0, 1] = hessian[1, 0] = 1.15  # smallest eigenvalue is -0.15
    factor = find_factor(hessian, torch.arange(8), torch.zeros(8), 0.01)
    assert factor is not None
    assert factor.fraction == pytest.approx(0.2) and factor.precision == "float32"


def test_float64_is_tried_where_float32_fails() -> None:
    hessian = torch.full((2, 2), 1.0, dtype=torch.float64)
    hessian[0, 0] += 1e-10  # lost in float32, as is damping that is this small
    factor = find_factor(hessian, torch.arange(2), torch.zeros(2), 1e-11)
    assert factor is not None
    assert factor.precision == "float64" and factor.fraction <= 1e-11 * LADDER[-1]


def test_hopeless_hessian_has_no_factor() -> None:
    hessian = torch.eye(4)
    hessian[0, 1] = hessian[1, 0] = 50.0
    assert find_factor(hessian, torch.arange(4), torch.zeros(4), 0.01) is None


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_is_finite(bad: float) -> None:
    matrix = torch.full((3, 3), 3e38)
    assert is_finite(matrix)
    matrix[1, 2] = bad
    assert not is_finite(matrix)


def test_torchs_routines_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    hessian, order = hessian_of(90), torch.randperm(90)
    rows = torch.randn(6, 90)

    def both() -> tuple[Tensor, Tensor]:
        factor = first(hessian, order)
        return factor.energies(rows[:, order]), factor.lower.tril()

    lapack_results = both()
    monkeypatch.setattr("vlpress.quant.methods.blas.is_supported", lambda matrix: False)
    for left, right in zip(lapack_results, both(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4 * float(right.abs().max()))
    bad = torch.eye(4)
    bad[0, 1] = bad[1, 0] = 50.0
    assert find_factor(bad, torch.arange(4), torch.zeros(4), 0.01) is None


@pytest.mark.parametrize("columns", [5, 32, 77])
def test_wide_ones_are_factored_by_blocks(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    hessian, order = hessian_of(columns), torch.randperm(columns)
    whole = first(hessian, order).lower.tril()
    hopeless = hessian.clone()
    hopeless[-1, -2] = hopeless[-2, -1] = 1e6
    monkeypatch.setattr("vlpress.quant.methods.hessian.cholesky.LAPACK_MAX_BYTES", 64)
    monkeypatch.setattr("vlpress.quant.methods.hessian.cholesky.BLOCK", 16)
    monkeypatch.setattr("vlpress.quant.methods.hessian.cholesky.SOLVE_ROWS", 7)
    blocked = first(hessian, order).lower.tril()
    torch.testing.assert_close(blocked, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))
    assert find_factor(hopeless, order, torch.zeros(columns), 0.01) is None
