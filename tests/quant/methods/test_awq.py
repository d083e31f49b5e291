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
