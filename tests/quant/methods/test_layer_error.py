import pytest
import torch

from vlpress.quant.methods.layer_error import relative_error, row_energy, split_rows


def test_energy_is_the_squared_output() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 8, generator=generator)
    rows = torch.randn(5, 8, generator=generator)
    expected = (x @ rows.t()).square().sum(dim=0)
    torch.testing.assert_close(row_energy(rows, x.t() @ x), expected, rtol=1e-5, atol=1e-5)
    assert bool((row_energy(torch.zeros(3, 8), x.t() @ x) == 0).all())


def test_relative_error_sums_over_the_layers() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(50, 8, generator=generator)
    weights = [torch.randn(n, 8, generator=generator) for n in (5, 2)]
    others = [weight + 0.1 * torch.randn(weight.shape, generator=generator) for weight in weights]
    off = sum(float((x @ (a - b).t()).square().sum()) for a, b in zip(weights, others, strict=True))
    size = sum(float((x @ weight.t()).square().sum()) for weight in weights)
    error = relative_error(weights, others, x.t() @ x)
    assert error == pytest.approx(off / size, rel=1e-4)
    assert relative_error(weights, [0 * weight for weight in weights], x.t() @ x) == pytest.approx(
        1
    )
    assert relative_error([torch.zeros(2, 8)], [torch.zeros(2, 8)], torch.eye(8)) == 0


def test_rows_of_heads_by_hand() -> None:
    """Two heads with two query and two gate rows each, next to a layer with one use."""
    gated, plain = torch.arange(8.0)[:, None], torch.tensor([[20.0], [21.0]])
    uses = split_rows([gated, plain], [(2, 2), ()])
    rows = [[matrix.flatten().tolist() for matrix in use] for use in uses]
    assert rows == [[[20.0, 21.0]], [[0.0, 1.0, 4.0, 5.0]], [[2.0, 3.0, 6.0, 7.0]]]


def test_runs_of_different_lengths() -> None:
    uses = split_rows([torch.arange(6.0)[:, None]], [(1, 1, 4)])
    assert [use[0].flatten().tolist() for use in uses] == [[0.0], [1.0], [2.0, 3.0, 4.0, 5.0]]


def test_layers_without_parts_are_not_copied() -> None:
    first, second = torch.ones(3, 2), torch.ones(4, 2)
    ((a, b),) = split_rows([first, second], [(), ()])
    assert a is first
    assert b is second


def test_rows_that_the_parts_do_not_fill() -> None:
    with pytest.raises(ValueError, match=r"10 rows .*\(2, 2\)"):
        split_rows([torch.zeros(10, 2)], [(2, 2)])
