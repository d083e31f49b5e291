"""The low-rank part: the optimum in the metric of the Hessian, and its limits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vlpress.quant.methods.layer_error import row_energy
from vlpress.quant.methods.low_rank import LowRank, low_rank, stored_dtype_of


def problem(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, an approximation, and the Hessian of inputs with unequal energies."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    approximation = weight + 0.1 * torch.randn(rows, columns, generator=generator)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(4 * columns, columns, generator=generator) @ mix
    inputs *= torch.rand(columns, generator=generator) * 4
    return weight, approximation, inputs.t() @ inputs / len(inputs)


def output_error(error: Tensor, hessian: Tensor) -> float:
    return float(row_energy(error.double().float(), hessian).sum())


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
@pytest.mark.parametrize("rank", [1, 5, 24])
def test_the_error_is_that_of_the_truncated_svd(shape: tuple[int, int], rank: int) -> None:
    weight, approximation, hessian = problem(*shape)
    part = low_rank(weight, approximation, hessian, rank)
    assert (part.down.shape, part.up.shape) == ((rank, shape[1]), (shape[0], rank))
    # Eckart and Young: no matrix of this rank leaves less than the other singular values.
    root = torch.linalg.cholesky(hessian.double())
    values = torch.linalg.svdvals((weight - approximation).double() @ root)
    least, whole = float(values[rank:].square().sum()), float(values.square().sum())
    left = output_error(weight - approximation - part.matrix(), hessian)
    assert left == pytest.approx(least, rel=1e-4, abs=1e-6 * whole)


def test_no_step_improves_it() -> None:
    weight, approximation, hessian = problem(24, 40)
    part = low_rank(weight, approximation, hessian, 4)
    down, up = (p.double().requires_grad_() for p in (part.down, part.up))
    error = (weight - approximation).double() - up @ down
    loss = ((error @ hessian.double()) * error).sum()
    torch.autograd.backward(loss)
    assert down.grad is not None and up.grad is not None
    size = 1e-4 * loss.detach()
    assert bool((down.grad.abs() < size).all()) and bool((up.grad.abs() < size).all())
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):  # nor do other factors of this rank that are near
        other = LowRank(
            part.down + 1e-3 * torch.randn(part.down.shape, generator=generator),
            part.up + 1e-3 * torch.randn(part.up.shape, generator=generator),
        )
        assert output_error(weight - approximation - other.matrix(), hessian) > float(loss.detach())


@given(rows=st.integers(1, 12), columns=st.integers(1, 12), seed=st.integers(0, 99))
def test_the_full_rank_reproduces_the_error(rows: int, columns: int, seed: int) -> None:
    weight, approximation, hessian = problem(rows, columns, seed)
    part = low_rank(weight, approximation, hessian, min(rows, columns))
    torch.testing.assert_close(part.matrix(), weight - approximation, rtol=0, atol=3e-5)


@given(rows=st.integers(2, 12), columns=st.integers(2, 12), seed=st.integers(0, 99))
def test_a_larger_rank_leaves_less(rows: int, columns: int, seed: int) -> None:
    weight, approximation, hessian = problem(rows, columns, seed)
    errors = [
        output_error(weight - approximation - part.matrix(), hessian)
        for rank in range(1, min(rows, columns) + 1)
        for part in [low_rank(weight, approximation, hessian, rank)]
    ]
    whole = output_error(weight - approximation, hessian)
    assert all(b <= a + 1e-5 * whole for a, b in zip([whole, *errors], errors, strict=False))


def test_features_without_energy_follow_the_plain_error() -> None:
    weight, approximation, _ = problem(8, 16)
    hessian = torch.diag(torch.tensor([1.0] * 4 + [0.0] * 12))
    part = low_rank(weight, approximation, hessian, 8)
    assert bool(torch.isfinite(part.matrix()).all())
    torch.testing.assert_close(part.matrix(), weight - approximation, rtol=0, atol=1e-4)
    silent = low_rank(weight, approximation, torch.zeros(16, 16), 8)  # no energy at all
    torch.testing.assert_close(silent.matrix(), weight - approximation, rtol=0, atol=1e-4)


def test_without_a_hessian_it_is_the_svd_of_the_weight() -> None:
    weight = problem(20, 30)[0]
    u, s, v = torch.linalg.svd(weight)
    expected = u[:, :3] * s[:3] @ v[:3]
    part = low_rank(weight, None, None, 3)
    torch.testing.assert_close(part.matrix(), expected, rtol=0, atol=1e-4)
    lengths = part.down.norm(dim=1), part.up.norm(dim=0)
    torch.testing.assert_close(*lengths, rtol=1e-4, atol=0)  # balanced
    again = low_rank(weight, None, None, 3)
    assert torch.equal(part.down, again.down) and torch.equal(part.up, again.up)


def test_it_is_stored_in_16_bits() -> None:
    assert stored_dtype_of(torch.float16) == torch.float16
    assert stored_dtype_of(torch.float32) == torch.bfloat16
    part = low_rank(problem(8, 8)[0], None, None, 2)
    assert part.to(torch.float16).up.dtype == torch.float16 and part.rank == 2
    tensors = part.tensors() | {"other": part.up}
    taken = LowRank.take(tensors)
    assert taken is not None and taken.down is part.down and list(tensors) == ["other"]
    assert LowRank.take(tensors) is None
    with pytest.raises(ValueError, match=r"does not fit torch\.float16"):
        LowRank(part.down * 1e6, part.up).to(torch.float16)


def test_what_has_no_low_rank_part_is_refused() -> None:
    weight, approximation, hessian = problem(8, 16)
    for rank in (0, 9):
        with pytest.raises(ValueError, match=f"rank {rank} for a weight of 8 x 16; allowed: 1 to"):
            low_rank(weight, approximation, hessian, rank)
    with pytest.raises(ValueError, match="the Hessian is"):
        low_rank(weight, approximation, hessian[:4, :4], 2)
    with pytest.raises(ValueError, match="the weight is not finite"):
        low_rank(weight * torch.inf, approximation, hessian, 2)
    with pytest.raises(ValueError, match="the Hessian is not finite"):
        low_rank(weight, approximation, hessian * torch.nan, 2)
