import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlpress.quant.kernels import reference
from vlpress.quant.methods.rtn import rtn
from vlpress.quant.methods.smoothquant import LARGEST_SCALE, smooth_scales, weight_absmax
from vlpress.quant.recipe.scheme import QuantScheme


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_weight_absmax_by_hand() -> None:
    weights = [torch.tensor([[1.0, -2.0], [0.5, 0.0]]), torch.tensor([[-3.0, 1.0]]).bfloat16()]
    assert weight_absmax(weights).tolist() == [3.0, 2.0]


def test_equation_four_by_hand() -> None:
    act, weight = torch.tensor([16.0, 4.0, 1.0]), torch.tensor([1.0, 4.0, 0.25])
    torch.testing.assert_close(smooth_scales(act, weight, 0.5), torch.tensor([4.0, 1.0, 2.0]))
    torch.testing.assert_close(smooth_scales(act, weight, 1.0), act)
    torch.testing.assert_close(smooth_scales(act, weight, 0.0), 1 / weight)


def test_half_balances_both_sides() -> None:
    act, weight = randn(32).abs() * 10, randn(32, seed=1).abs()
    scales = smooth_scales(act, weight, 0.5)
    torch.testing.assert_close(act / scales, weight * scales)


MAGNITUDES = st.sampled_from([0.0, 1e-38, 1e-12, 1e-3, 1.0, 7.5, 1e4, 1e12, 3e38])


@settings(max_examples=100)
@given(
    pairs=st.lists(st.tuples(MAGNITUDES, MAGNITUDES), min_size=1, max_size=8),
    alpha=st.floats(0, 1),
)
def test_scales_are_positive_and_finite_whatever_comes(
    pairs: list[tuple[float, float]], alpha: float
) -> None:
    act, weight = torch.tensor(pairs).unbind(1)
    scales = smooth_scales(act, weight, alpha)
    assert bool(((scales >= 1 / LARGEST_SCALE) & (scales <= LARGEST_SCALE)).all())
    assert scales[act == 0].tolist() == [1.0] * int((act == 0).sum())


def test_dead_channels_and_zero_columns() -> None:
    act, weight = torch.tensor([0.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 3.0])
    scales = smooth_scales(act, weight, 0.5)
    assert float(scales[0]) == 1.0
    # Nothing reads the second channel: its scale may be anything.
    assert float(scales[1]) > 100
    assert smooth_scales(act, torch.zeros(3), 0.5).tolist() == [1.0, 1.0, 1.0]


def test_outliers_hurt_int8_less() -> None:
    """One huge channel: a scale per tensor leaves the others a few levels, until it is smoothed."""
    x, weight = randn(200, 64), randn(48, 64, seed=1) / 8
    x[:, 7] *= 100
    exact = x @ weight.t()
    scheme = QuantScheme(8, -1)

    def error(scales: Tensor) -> float:
        smoothed, matrix = x / scales, rtn(weight * scales, scheme)
        packed = reference.prepack(matrix.integers, 8)
        actual = reference.integer_linear(
            smoothed,
            packed,
            matrix.scales,
            matrix.zero_points,
            8,
            input_scale=smoothed.abs().max() / 127,
        )
        return float((actual - exact).norm() / exact.norm())

    plain = error(torch.ones(64))
    smoothed = error(smooth_scales(x.abs().amax(dim=0), weight_absmax([weight]), 0.5))
    assert plain > 0.02
    assert smoothed < plain / 5


def test_rejects() -> None:
    ones = torch.ones(3)
    with pytest.raises(ValueError, match=r"alpha is 1\.5; allowed: .* 0 to 1"):
        smooth_scales(ones, ones, 1.5)
    with pytest.raises(ValueError, match="activations are not finite"):
        smooth_scales(ones / 0, ones, 0.5)
    with pytest.raises(ValueError, match="weights are not finite"):
        smooth_scales(ones, ones * float("nan"), 0.5)
