from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlpress.calib.observers import AbsMax, CrossMoment, Hessian, MeanAbs, MinMax, Observer


def tokens(count: int = 40, features: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(1, 39), max_size=5, unique=True), weighted=st.booleans())
def test_hessian_does_not_depend_on_the_split(cuts: list[int], weighted: bool) -> None:
    x = tokens()
    w = torch.rand(40, generator=torch.Generator().manual_seed(1)) if weighted else None
    observer = Hessian(6)
    bounds = [0, *sorted(cuts), 40]
    for start, stop in pairwise(bounds):
        observer.update(x[start:stop], None if w is None else w[start:stop])
    weights = torch.ones(40) if w is None else w
    expected = (x.double() * weights.double()[:, None]).t() @ x.double() / weights.double().sum()
    torch.testing.assert_close(observer.values.double(), expected, rtol=1e-5, atol=1e-6)
    assert observer.tokens == 40
    assert observer.weight == pytest.approx(float(weights.sum()), rel=1e-6)


def test_hessian_of_half_precision_is_summed_in_float32() -> None:
    x = torch.full((100_000, 1), 3.0, dtype=torch.bfloat16)
    observer = Hessian(1)
    observer.update(x.reshape(10, 10_000, 1))
    assert float(observer.values) == pytest.approx(9.0, rel=1e-3)
    assert observer.values.dtype == torch.float32


def test_large_activations_do_not_overflow() -> None:
    observer = Hessian(2)
    observer.update(torch.full((1000, 2), 1e18))
    assert bool(torch.isfinite(observer.values).all())


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(1, 39), max_size=5, unique=True), weighted=st.booleans())
def test_cross_moment_does_not_depend_on_the_split(cuts: list[int], weighted: bool) -> None:
    x, y = tokens(), tokens(seed=5)
    w = torch.rand(40, generator=torch.Generator().manual_seed(1)) if weighted else torch.ones(40)
    w[7] = 0
    hessian, cross = Hessian(6), CrossMoment(6)
    for start, stop in pairwise([0, *sorted(cuts), 40]):
        hessian.update(x[start:stop], w[start:stop])
        cross.update(x[start:stop], y[start:stop], w[start:stop])
    expected = ((y - x).double() * w.double()[:, None]).t() @ x.double() / w.double().sum()
    torch.testing.assert_close(cross.values.double(), expected, rtol=1e-5, atol=1e-6)
    assert cross.weight == hessian.weight


def test_cross_moment_by_hand() -> None:
    """One token: the first channel deviates by 3, the second by 0."""
    cross = CrossMoment(2)
    cross.update(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[4.0, 2.0]]]))
    assert torch.allclose(cross.values, torch.tensor([[3.0, 6.0], [0.0, 0.0]]))
    cross.update(torch.tensor([[5.0, 5.0]]), torch.tensor([[5.0, 5.0]]), torch.tensor([2.0]))
    assert torch.allclose(cross.values, torch.tensor([[1.0, 2.0], [0.0, 0.0]]))


def test_rounded_inputs_by_hand() -> None:
    """The layer multiplies (1, 2), rounded from (1.25, 1.5); the float model has (4.25, 1.5)."""
    inputs, rounded = torch.tensor([[1.25, 1.5]]), torch.tensor([[1.0, 2.0]])
    hessian, cross = Hessian(2), CrossMoment(2)
    hessian.update(rounded, unrounded=inputs)
    assert torch.equal(hessian.values, torch.tensor([[1.0, 2.0], [2.0, 4.0]]))
    assert (hessian.input_range.low, hessian.input_range.high) == (1.25, 1.5)
    cross.update(inputs, torch.tensor([[4.25, 1.5]]), rounded=rounded)
    assert torch.equal(cross.values, torch.tensor([[3.0, 6.0], [0.0, 0.0]]))


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_moment_of_outputs_equals_the_product(weighted: bool) -> None:
    x, y = tokens(), tokens(seed=5)
    w = torch.rand(40, generator=torch.Generator().manual_seed(1)) if weighted else None
    layers = [tokens(2, seed=7).bfloat16(), tokens(3, seed=8).bfloat16()]
    cross, projected = CrossMoment(6), CrossMoment(6, weights=layers)
    for observer in (cross, projected):
        observer.update(x, y, w)
        observer.update(x, x, w)  # equal inputs count as tokens
    assert projected.values.shape == (5, 6) and projected.weight == cross.weight
    for layer, first_row in zip(layers, (0, 2), strict=True):
        expected = layer.double() @ cross.values.double()
        for observer in (cross, projected):
            actual = observer.of_outputs(layer, first_row).double()
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_equal_paths_have_no_cross_moment() -> None:
    cross = CrossMoment(6)
    x = tokens().bfloat16()
    cross.update(x, x.clone())
    assert cross.values.dtype == torch.float32
    assert not bool(cross.values.any())


def test_tokens_of_weight_zero_are_ignored() -> None:
    x = tokens()
    weights = torch.ones(40)
    weights[:10] = 0
    x[:10] = 1e9
    hessian, absmax, minmax = Hessian(6), AbsMax(6), MinMax()
    observers: list[Observer] = [hessian, absmax, minmax]
    for observer in observers:
        observer.update(x, weights)
    expected = Hessian(6)
    expected.update(x[10:])
    torch.testing.assert_close(hessian.values, expected.values)
    assert torch.equal(absmax.values, x[10:].abs().amax(dim=0))
    assert (minmax.low, minmax.high) == (float(x[10:].min()), float(x[10:].max()))


def test_all_weights_zero_changes_nothing() -> None:
    observer = Hessian(6)
    observer.update(tokens())
    before = observer.values.clone()
    observer.update(tokens(seed=1), torch.zeros(40))
    assert torch.equal(observer.values, before)


def test_absmax_and_minmax_accumulate() -> None:
    absmax, minmax = AbsMax(6), MinMax()
    parts = [tokens(seed=seed) for seed in range(3)]
    for part in parts:
        absmax.update(part.reshape(4, 10, 6))
        minmax.update(part)
    whole = torch.cat(parts)
    assert torch.equal(absmax.values, whole.abs().amax(dim=0))
    assert (minmax.low, minmax.high) == (float(whole.min()), float(whole.max()))


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(1, 39), max_size=5, unique=True), weighted=st.booleans())
def test_mean_magnitude_does_not_depend_on_the_split(cuts: list[int], weighted: bool) -> None:
    x = tokens()
    w = torch.rand(40, generator=torch.Generator().manual_seed(1)) if weighted else torch.ones(40)
    w[3] = 0
    observer = MeanAbs(6)
    for start, stop in pairwise([0, *sorted(cuts), 40]):
        observer.update(x[start:stop], w[start:stop])
    expected = (x.abs() * w[:, None]).sum(dim=0) / w.sum()
    torch.testing.assert_close(observer.values, expected, rtol=1e-5, atol=1e-6)
    if not weighted:
        unweighted = MeanAbs(6)
        unweighted.update(x[w > 0])
        torch.testing.assert_close(observer.values, unweighted.values, rtol=1e-5, atol=1e-6)


def test_hessian_tracks_the_range_of_its_inputs() -> None:
    observer = Hessian(2)
    assert observer.input_range.largest == 0
    observer.update(torch.tensor([[1.0, -7.0]]))
    observer.update(torch.tensor([[3.0, 2.0], [50.0, 0.0]]), torch.tensor([1.0, 0.0]))
    assert (observer.input_range.low, observer.input_range.high) == (-7.0, 3.0)
    assert observer.input_range.largest == 7.0


def test_rejects() -> None:
    with pytest.raises(ValueError, match=r"\(40, 6\).*\(39, 6\)"):
        CrossMoment(6).update(tokens(), tokens(39))
    with pytest.raises(ValueError, match=r"\b6\b.*\b5\b"):
        Hessian(6).update(tokens(features=5))
    with pytest.raises(ValueError, match=r"\(3,\).*\b40\b"):
        Hessian(6).update(tokens(), torch.ones(3))
    with pytest.raises(ValueError, match="token weights"):
        Hessian(6).update(tokens(), torch.full((40,), -1.0))


def lower_only(lower: torch.Tensor, x: torch.Tensor, alpha: float, beta: float) -> None:
    """A `Syrk` that leaves garbage above the diagonal."""
    lower.copy_((beta * lower + alpha * x.float().t() @ x.float()).tril())
    lower += torch.full_like(lower, 1e9).triu(1)


@pytest.mark.parametrize("features", [6, 1030])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_lower_triangle_of_a_syrk_is_enough(features: int, weighted: bool) -> None:
    x = tokens(features=features).bfloat16()
    weights = torch.rand(40, generator=torch.Generator().manual_seed(1)) if weighted else None
    expected, actual = Hessian(features), Hessian(features, syrk=lower_only)
    for part in (slice(0, 13), slice(13, 30), slice(30, 40)):
        of_part = None if weights is None else weights[part]
        expected.update(x[part], of_part)
        actual.update(x[part], of_part)
        if part.start == 13:
            assert torch.equal(actual.values, actual.values.t())  # read between updates
    # Without weights products are exact; roots of weights are rounded to bf16.
    rtol, atol = (1e-2, 5e-3) if weighted else (1e-5, 1e-6)
    torch.testing.assert_close(actual.values, expected.values, rtol=rtol, atol=atol)
    assert actual.tokens == expected.tokens and actual.weight == expected.weight


def test_float32_inputs_are_not_rounded_to_bf16() -> None:
    expected, actual = Hessian(6), Hessian(6, syrk=lower_only)
    expected.update(tokens())
    actual.update(tokens())
    assert torch.equal(actual.values, expected.values)
