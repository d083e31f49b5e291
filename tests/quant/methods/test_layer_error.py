import pytest
import torch

from vlpress.quant.methods.layer_error import relative_error, row_energy


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
