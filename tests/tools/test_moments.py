import torch
from moments import Moments


def test_solve_recovers_an_affine_map() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator)
    weight, bias = torch.randn(6, 3, generator=generator), torch.randn(3, generator=generator)
    moments = Moments()
    for rows in torch.split(x, 100):
        moments.add(torch.cat((rows, rows @ weight + bias), 1))
    constant = 9
    found = moments.solve(torch.tensor([*range(6), constant]), torch.arange(6, 9))
    assert torch.allclose(found[:-1], weight.double(), atol=1e-3)
    assert torch.allclose(found[-1], bias.double(), atol=1e-3)


def test_leading_dimensions_are_rows() -> None:
    x = torch.arange(12.0).view(2, 3, 2)
    moments = Moments()
    moments.add(x)
    rows = torch.cat((x.view(6, 2), torch.ones(6, 1)), 1).double()
    assert torch.equal(moments.sum, rows.t() @ rows)
