from collections.abc import Callable

import pytest
import torch

from vlpress.quant.methods.affine import choose_qparams, dequantize, quantize, round_scales
from vlpress.quant.methods.layer_error import relative_error
from vlpress.quant.methods.rtn import rtn
from vlpress.quant.methods.scale_search import (
    CLIPPING_RATIOS,
    EXPONENT,
    SOLVER_RATIOS,
    clip_scales,
    group_blocks,
    search_scales,
)
from vlpress.quant.recipe.scheme import QuantScheme


def losses_of(
    weight: torch.Tensor,
    scheme: QuantScheme,
    ratio: float,
    loss: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales of one ratio and the loss of each group."""
    scales, zero_points = choose_qparams(weight, scheme)
    scales = round_scales(scales * ratio)
    error = weight - dequantize(quantize(weight, scales, zero_points, scheme), scales, zero_points)
    return scales, loss(error).reshape(*scales.shape, -1).sum(-1)


@pytest.mark.parametrize("symmetric", [True, False])
def test_each_group_takes_its_best_ratio(symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 128, generator=generator)
    energy = torch.rand(128, generator=generator)
    scheme = QuantScheme(3, 32, symmetric)
    grid = choose_qparams(weight, scheme)
    cases = {
        SOLVER_RATIOS: (
            search_scales(weight, *grid, scheme),
            lambda error: error.abs() ** EXPONENT,
        ),
        CLIPPING_RATIOS: (
            clip_scales(weight, *grid, torch.diag(energy), scheme),
            lambda error: error.square() * energy,
        ),
    }
    for ratios, (searched, loss) in cases.items():
        scales, losses = zip(
            *(losses_of(weight, scheme, ratio, loss) for ratio in ratios), strict=True
        )
        best = torch.stack(losses).argmin(dim=0)
        assert len(set(best.flatten().tolist())) > 3
        assert torch.equal(searched, torch.stack(scales).gather(0, best[None])[0])
        assert torch.equal(searched, round_scales(searched))


def test_a_solver_keeps_room_for_what_it_moves() -> None:
    """One weight far above the others: rounding clips it freely, a solver only a little."""
    weight = torch.full((1, 32), 0.4)
    weight[0, 0] = 1.0
    scheme = QuantScheme(3, -1)
    grid = choose_qparams(weight, scheme)
    indifferent = torch.diag(torch.tensor([0.0] + [1.0] * 31))
    assert float(clip_scales(weight, *grid, indifferent, scheme)) < 0.8 * float(grid[0])
    assert float(search_scales(weight, *grid, scheme)) >= 0.79 * float(grid[0])


def test_outliers_are_clipped_only_where_they_do_not_matter() -> None:
    weight = torch.full((1, 32), 0.4)
    weight[0, 0] = 1.0
    scheme = QuantScheme(3, -1)
    grid = choose_qparams(weight, scheme)

    def clip(first: float) -> float:
        energy = torch.ones(32)
        energy[0] = first
        return float(clip_scales(weight, *grid, torch.diag(energy), scheme))

    assert clip(0.0) < 0.8 * float(grid[0])
    assert clip(1e6) > 0.9 * float(grid[0])


def test_ties_keep_the_scale() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    weight[0, :32] = 0
    scheme = QuantScheme(4, 32)
    scales, zero_points = choose_qparams(weight, scheme)
    energy = torch.ones(64)
    energy[32:] = 0
    clipped = clip_scales(weight, scales, zero_points, torch.diag(energy), scheme)
    assert torch.equal(clipped[:, 1], scales[:, 1])
    assert float(clipped[0, 0]) == 1.0
    assert float(search_scales(weight, scales, zero_points, scheme)[0, 0]) == 1.0


def test_blocks_of_a_hessian() -> None:
    hessian = torch.arange(36.0).reshape(6, 6)
    assert group_blocks(hessian, 3).tolist() == [
        [[0, 1], [6, 7]],
        [[14, 15], [20, 21]],
        [[28, 29], [34, 35]],
    ]
    assert torch.equal(group_blocks(hessian, 1)[0], hessian)


def test_rounding_with_searched_scales_errs_less() -> None:
    """Inputs with something in common, where clipping by the diagonal alone would mislead."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(500, 64, generator=generator) + 3 * torch.rand(64, generator=generator)
    weight = torch.randn(16, 64, generator=generator)
    hessian, scheme = x.t() @ x, QuantScheme(3, -1)
    plain, searched = rtn(weight, scheme), rtn(weight, scheme, hessian)
    grid = choose_qparams(weight, scheme)
    scales = clip_scales(weight, *grid, torch.diag(hessian.diagonal()), scheme)
    integers = quantize(weight, scales, grid[1], scheme)
    by_diagonal = dequantize(integers, scales, grid[1])
    errors = [
        relative_error([weight], [candidate], hessian)
        for candidate in (searched.dequantize(), plain.dequantize(), by_diagonal)
    ]
    assert errors[0] < 0.9 * min(errors[1:])
    assert torch.equal(searched.scales, round_scales(searched.scales))
