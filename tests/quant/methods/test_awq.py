import pytest
import torch
from torch import Tensor

from vlpress.quant.methods.awq import awq_scales, column_magnitudes, scales_at
from vlpress.quant.methods.gptq import gptq
from vlpress.quant.methods.layer_error import relative_error
from vlpress.quant.methods.rtn import rtn
from vlpress.quant.recipe.scheme import QuantScheme

INT4 = QuantScheme(4, 64)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def salient(tokens: int = 400, features: int = 128) -> Tensor:
    """Inputs with a few channels that are thirty times as large as the others."""
    x = randn(tokens, features)
    x[:, [5, 40, 77]] *= 30
    return x


def test_scales_by_hand() -> None:
    magnitudes = torch.tensor([1.0, 4.0, 16.0])
    assert scales_at(magnitudes, 0.0).tolist() == [1.0, 1.0, 1.0]
    torch.testing.assert_close(scales_at(magnitudes, 0.5), torch.tensor([0.5, 1.0, 2.0]))
    torch.testing.assert_close(scales_at(magnitudes, 1.0), torch.tensor([0.25, 1.0, 4.0]))
    sizes = torch.tensor([0.25, 1.0, 0.25])
    expected = torch.tensor([4.0, 1.0, 4.0]) / 2
    torch.testing.assert_close(scales_at(magnitudes, 0.0, sizes), expected)
    balanced = torch.tensor([2.0, 2.0, 8.0]) / 4  # 1 / 0.5, 2 / 1, 4 / 0.5
    torch.testing.assert_close(scales_at(magnitudes, 0.5, sizes), balanced)


def test_column_magnitudes_by_hand() -> None:
    weights = [torch.tensor([[1.0, -2.0, 0.0, 0.0]]), torch.tensor([[4.0, 4.0, -8.0, 2.0]])]
    scheme = QuantScheme(4, 2)  # two groups in each row
    assert column_magnitudes(weights, scheme).tolist() == [0.75, 1.0, 0.5, 0.125]


@pytest.mark.parametrize("size", [1e-38, 1.0, 1e38])
def test_scales_are_finite_and_follow_only_proportions(size: float) -> None:
    magnitudes = torch.tensor([0.0, 0.5, 1.0, 2.0])
    scales = scales_at(magnitudes * size, 1.0)
    assert float(scales[0]) == 1.0  # never excited
    torch.testing.assert_close(scales[1:], torch.tensor([0.5, 1.0, 2.0]))
    for sizes in (None, torch.tensor([0.0, 1e-38, 1.0])):
        lopsided = scales_at(torch.tensor([1e-30, 1.0, 1e30]), 0.5, sizes)
        assert bool((torch.isfinite(lopsided) & (lopsided > 0)).all())
    assert scales_at(torch.zeros(3), 0.7).tolist() == [1.0, 1.0, 1.0]


def test_beats_rounding_where_few_channels_carry_the_output() -> None:
    x, weights = salient(), [randn(48, 128, seed=1), randn(32, 128, seed=2)]
    result = awq_scales(weights, x.t() @ x, x.abs().mean(dim=0), INT4)
    assert 0 < result.ratio <= 1
    assert result.error < 0.5 * result.rtn_error
    # The reported error is that of the outputs, with the scales where they will be.
    exact = [x @ weight.t() for weight in weights]
    outs = [(x / result.scales) @ rtn(w * result.scales, INT4).dequantize().t() for w in weights]
    off = sum(float((a - b).square().sum()) for a, b in zip(outs, exact, strict=True))
    assert off / sum(float(a.square().sum()) for a in exact) == pytest.approx(
        result.error, rel=1e-3
    )


def test_without_scales_is_rounding_and_wins_ties() -> None:
    x, weight = randn(300, 64), torch.ones(16, 64)  # nothing stands out on either side
    plain = rtn(weight, INT4).dequantize()
    result = awq_scales([weight], x.t() @ x, torch.ones(64), INT4)
    assert (result.ratio, result.balanced) == (0, False)
    assert result.scales.tolist() == [1.0] * 64
    assert result.error == result.rtn_error
    assert result.error == pytest.approx(relative_error([weight], [plain], x.t() @ x), rel=1e-5)


def test_outlying_columns_of_weights_are_balanced() -> None:
    """Large where the inputs are small, so that the product is like any other."""
    x, weight = randn(400, 128), randn(48, 128, seed=1)
    x[:, [5, 40, 77]] /= 16
    weight[:, [5, 40, 77]] *= 16
    result = awq_scales([weight], x.t() @ x, x.abs().mean(dim=0), INT4)
    assert result.balanced
    assert result.error < 0.2 * result.rtn_error
    assert float(result.scales[5]) < 0.2 * float(result.scales.median())


def test_clipping_is_part_of_the_judgement() -> None:
    x, weight = salient(), randn(48, 128, seed=1)
    hessian, magnitudes = x.t() @ x, x.abs().mean(dim=0)
    result = awq_scales([weight], hessian, magnitudes, INT4, clip=True)
    assert result.rtn_error == pytest.approx(
        relative_error([weight], [rtn(weight, INT4, hessian).dequantize()], hessian), rel=1e-5
    )
    scaled = hessian / result.scales / result.scales[:, None]
    candidate = rtn(weight * result.scales, INT4, scaled).dequantize() / result.scales
    assert relative_error([weight], [candidate], hessian) == pytest.approx(result.error, rel=1e-5)
    assert result.error < awq_scales([weight], hessian, magnitudes, INT4).error


def test_layers_for_a_solver_are_judged_on_positive_scales() -> None:
    x, weight = salient(), randn(48, 128, seed=1)
    hessian, magnitudes = x.t() @ x, x.abs().mean(dim=0)
    for signed in (False, True):
        result = awq_scales([weight], hessian, magnitudes, INT4, signed=signed)
        plain = rtn(weight, INT4, signed=signed).dequantize()
        assert result.rtn_error == pytest.approx(relative_error([weight], [plain], hessian))


def gated(heads: int = 2, width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, a layer with query and gate rows, and the numbers of its gate rows.

    The queries are large. In the gate rows the columns of the large inputs have the largest weight
    of their group, which is exact on the grid, so every scaling of these columns only coarsens the
    grid of the others.
    """
    x, weight = salient(), 8 * randn(2 * heads * width, 128, seed=1)
    gates = torch.arange(len(weight)).reshape(heads, 2, width)[:, 1].flatten()
    weight[gates] = 2**-9 * randn(len(gates), 128, seed=2).clamp(-2, 2)
    weight[gates[:, None], torch.tensor([5, 40, 77])] = -(2**-6)
    return x, weight, gates


def error_of(rows: Tensor, hessian: Tensor, scales: Tensor) -> float:
    candidate = rtn(rows * scales, INT4).dequantize() / scales
    return relative_error([rows], [candidate], hessian)


def test_large_rows_do_not_decide_for_small_ones() -> None:
    """One score over queries and gates ruins the gates; a score for each does not."""
    x, weight, gates = gated()
    hessian, magnitudes = x.t() @ x, x.abs().mean(dim=0)
    joint = awq_scales([weight], hessian, magnitudes, INT4)
    apart = awq_scales([weight], hessian, magnitudes, INT4, row_parts=[(16, 16)])
    plain = error_of(weight[gates], hessian, torch.ones(128))
    assert joint.error < 0.5 * joint.rtn_error
    assert error_of(weight[gates], hessian, joint.scales) > 3 * plain
    assert error_of(weight[gates], hessian, apart.scales) <= plain


def test_rows_of_all_uses_that_gain_are_scaled() -> None:
    """The error is the mean over the uses, whatever their sizes; other layers are one use."""
    x, weight, other = salient(), randn(64, 128, seed=1), randn(16, 128, seed=2)
    weight.view(2, 2, 16, 128)[:, 1] *= 0.01
    hessian = x.t() @ x
    result = awq_scales(
        [weight, other], hessian, x.abs().mean(dim=0), INT4, row_parts=[(16, 16), ()]
    )
    halves = weight.view(2, 2, 16, 128).transpose(0, 1).reshape(2, 32, 128)
    uses = [*halves, other]
    for scales, expected in ((result.scales, result.error), (torch.ones(128), result.rtn_error)):
        errors = [error_of(rows, hessian, scales) for rows in uses]
        assert sum(errors) / 3 == pytest.approx(expected, rel=1e-4)
    assert result.error < 0.5 * result.rtn_error


@pytest.mark.parametrize("parts", [None, [(), ()]])
def test_without_parts_all_rows_have_one_score(parts: list[tuple[int, ...]] | None) -> None:
    """The candidates and the choice by their definition, for two layers of other energies."""
    x, weights = salient(), [randn(24, 128, seed=1), 5 * randn(16, 128, seed=2)]
    hessian, magnitudes = x.t() @ x, x.abs().mean(dim=0)
    sizes = column_magnitudes(weights, INT4)
    grid = [(point / 4, None) for point in range(5)] + [(point / 4, sizes) for point in range(4)]
    errors = []
    for ratio, of_weights in grid:
        scales = scales_at(magnitudes, ratio, of_weights)
        candidates = [rtn(w * scales, INT4).dequantize() / scales for w in weights]
        errors.append(relative_error(weights, candidates, hessian))
    result = awq_scales(weights, hessian, magnitudes, INT4, points=4, row_parts=parts)
    best = errors.index(min(errors))
    assert (result.ratio, result.balanced) == (grid[best][0], grid[best][1] is not None)
    assert (result.error, result.rtn_error) == (min(errors), errors[0])


@pytest.mark.parametrize("parts", [None, [(16, 16)]])
def test_an_error_that_is_not_finite_stops(parts: list[tuple[int, ...]] | None) -> None:
    x, weight = randn(300, 64), randn(32, 64, seed=1)
    weight[20] *= 1e18  # its squared output overflows float32
    with pytest.raises(ValueError, match=r"squares of the outputs is (inf|nan)"):
        awq_scales([weight], 1e8 * x.t() @ x, torch.ones(64), INT4, row_parts=parts)
    weight[20] = torch.nan
    with pytest.raises(ValueError, match="of the outputs is nan"):
        awq_scales([weight], x.t() @ x, torch.ones(64), INT4, row_parts=parts)


def test_more_points_never_do_worse() -> None:
    x, weight = salient(), randn(48, 128, seed=1)
    errors = [
        awq_scales([weight], x.t() @ x, x.abs().mean(dim=0), INT4, points=points).error
        for points in (1, 2, 4, 8)  # each grid contains the one before
    ]
    assert errors == sorted(errors, reverse=True)


def test_helps_gptq_too() -> None:
    x, weight = salient(), randn(48, 128, seed=1)
    hessian = x.t() @ x
    scheme = QuantScheme(3, 128)
    plain = gptq(weight, hessian, scheme).final_error
    scales = awq_scales([weight], hessian, x.abs().mean(dim=0), scheme).scales
    scaled = gptq(weight * scales, hessian / scales / scales[:, None], scheme).final_error
    assert scaled < plain


def test_columns_that_carry_one_channel_share_its_scale() -> None:
    """Four tiles of a norm, as the merger reads them."""
    x, weight = salient(features=128), randn(16, 128, seed=3)
    index = torch.arange(32).repeat(4)
    means = x.abs().mean(dim=0).reshape(4, 32).mean(dim=0)
    result = awq_scales([weight], x.t() @ x, means, INT4, index=index)
    assert result.scales.shape == (32,)
    spread = result.scales[index]
    candidate = rtn(weight * spread, INT4).dequantize() / spread
    assert relative_error([weight], [candidate], x.t() @ x) == pytest.approx(result.error, rel=1e-5)
    assert result.error < result.rtn_error


def test_rejects() -> None:
    weight, ones = randn(8, 64), torch.ones(64)
    with pytest.raises(ValueError, match=r"Hessian has 32 .* 64"):
        awq_scales([weight], torch.eye(32), torch.ones(32), INT4)
    with pytest.raises(ValueError, match="points is 0"):
        awq_scales([weight], torch.eye(64), ones, INT4, points=0)
    with pytest.raises(ValueError, match="overflowed"):
        awq_scales([weight], torch.eye(64), ones / 0, INT4)
