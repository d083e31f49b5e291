"""Triangular factors of damped Hessians."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlpress.quant.error import row_energy
from vlpress.quant.factor import ROWS_AT_ONCE, Factor, factors, is_finite


def hessian_of(columns: int, seed: int = 0) -> Tensor:
    x = torch.randn(3 * columns, columns, generator=torch.Generator().manual_seed(seed))
    x = x @ torch.randn(columns, columns, generator=torch.Generator().manual_seed(seed + 1))
    return x.t() @ x / len(x)


def first(hessian: Tensor, order: Tensor, damp_percent: float = 0.01) -> Factor:
    return next(factors(hessian, order, torch.zeros(len(order)), damp_percent))


def test_the_inverse_turned_round_is_the_upper_cholesky_of_the_inverse() -> None:
    hessian = hessian_of(64)
    found = first(hessian, torch.arange(64).flip(0))
    assert found.invert()
    damped = hessian.double() + torch.diag(found.damping.flip(0).double())
    expected = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    upper = found.lower.tril().flip(0, 1).double()
    torch.testing.assert_close(upper, expected, rtol=1e-3, atol=1e-3 * float(expected.max()))


@pytest.mark.parametrize("columns", [1, 7, 96, ROWS_AT_ONCE + 9])
def test_the_factor_is_that_of_the_matrix_in_the_wanted_order(columns: int) -> None:
    hessian = hessian_of(columns)
    kept = hessian.clone()
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(2))
    found = first(hessian, order)
    assert torch.equal(hessian, kept)
    lower = found.lower.tril().double()
    wanted = hessian[order][:, order].double() + torch.diag(found.damping.double())
    torch.testing.assert_close(
        lower @ lower.t(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.max())
    )
    mean = float(hessian.diagonal().mean())
    assert found.damping.tolist() == pytest.approx([0.01 * mean] * columns)
    assert found.fraction == 0.01 and found.precision == "float32"


def test_energies_are_those_without_damping() -> None:
    hessian, order = hessian_of(80), torch.randperm(80)
    rows = torch.randn(11, 80)
    wanted = row_energy(rows, hessian)
    found = first(hessian, order, damp_percent=0.3).energies(rows[:, order])
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.max()))


def test_what_is_missing_is_added_beside_the_damping() -> None:
    hessian = torch.diag(torch.tensor([4.0, 0.0, 2.0]))
    found = next(
        factors(hessian, torch.tensor([1, 2, 0]), torch.tensor([0.0, 3.0, 0.0]), damp_percent=0.1)
    )
    assert found.damping.tolist() == pytest.approx([3.3, 0.3, 0.3])  # the mean is 3
    assert found.lower.diagonal().square().tolist() == pytest.approx([3.3, 2.3, 4.3])


def test_the_ladder_climbs_until_a_factor_exists() -> None:
    hessian = torch.eye(8)
    hessian[0, 1] = hessian[1, 0] = 1.15  # smallest eigenvalue is -0.15
    fractions = [f.fraction for f in factors(hessian, torch.arange(8), torch.zeros(8), 0.01)]
    assert fractions == pytest.approx([0.2, 0.5, 1.0] * 2)


def test_there_may_be_no_factor() -> None:
    hessian = torch.eye(4)
    hessian[0, 1] = hessian[1, 0] = 50.0
    assert list(factors(hessian, torch.arange(4), torch.zeros(4), 0.01)) == []


def test_an_inverse_that_is_not_finite_is_refused() -> None:
    tiny = torch.full((2,), torch.finfo(torch.float32).tiny)
    lower = torch.diag(tiny)
    lower[1, 0] = 1e30
    assert not Factor(lower, torch.zeros(2), 0.01, "float32").invert()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_finite(bad: float) -> None:
    matrix = torch.full((3, 3), 3e38)
    assert is_finite(matrix)
    matrix[1, 2] = bad
    assert not is_finite(matrix)


def test_torchs_routines_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    hessian, order = hessian_of(90), torch.randperm(90)
    rows = torch.randn(6, 90)

    def both() -> tuple[Tensor, Tensor]:
        found = first(hessian, order)
        energies = found.energies(rows[:, order])
        assert found.invert()
        return energies, found.lower.tril()

    ours = both()
    monkeypatch.setattr("vlpress.quant.factor.has_lapack", lambda matrix: False)
    for left, right in zip(ours, both(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4 * float(right.abs().max()))
    bad = torch.eye(4)
    bad[0, 1] = bad[1, 0] = 50.0
    assert list(factors(bad, torch.arange(4), torch.zeros(4), 0.01)) == []


@pytest.mark.parametrize("columns", [5, 32, 77])
def test_wide_ones_are_factored_by_blocks(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    hessian, order = hessian_of(columns), torch.randperm(columns)
    whole = first(hessian, order).lower.tril()
    hopeless = hessian.clone()
    hopeless[-1, -2] = hopeless[-2, -1] = 1e6
    monkeypatch.setattr("vlpress.quant.factor.WIDEST", 4)
    monkeypatch.setattr("vlpress.quant.factor.BLOCK", 16)
    found = first(hessian, order).lower.tril()
    torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))
    assert list(factors(hopeless, order, torch.zeros(columns), 0.01)) == []
