import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlpress.quant.methods.layer_error import relative_error
from vlpress.quant.methods.shrink.refit import refit, removed_channels, scattered


def problem(
    seed: int, rows: int = 6, width: int = 12, tokens: int = 60
) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, correlated inputs, and a choice of channels."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator)
    mixing = torch.randn(width, width, generator=generator)
    inputs = torch.randn(tokens, width, generator=generator) @ mixing
    count = int(torch.randint(1, width, (1,), generator=generator))
    kept = torch.randperm(width, generator=generator)[:count].sort().values
    return weight, inputs, kept


def hessian_of(inputs: Tensor) -> Tensor:
    return inputs.T @ inputs / len(inputs)


@pytest.mark.parametrize("seed", range(4))
def test_closed_form_is_the_least_squares_solution(seed: int) -> None:
    weight, inputs, kept = problem(seed)
    actual = refit(weight, hessian_of(inputs), kept, damp_percent=1e-9)
    x = inputs.double().numpy()
    expected = np.linalg.lstsq(x[:, kept.numpy()], x @ weight.double().numpy().T)[0].T
    np.testing.assert_allclose(actual.numpy(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("seed", range(4))
def test_damping_is_a_ridge_around_the_original_columns(seed: int) -> None:
    weight, inputs, kept = problem(seed)
    hessian = hessian_of(inputs)
    actual = refit(weight, hessian, kept, damp_percent=0.1)
    x, w = inputs.double().numpy(), weight.double().numpy()
    of_kept = kept.numpy()
    damping = 0.1 * float(hessian.diagonal()[kept].mean())
    root = np.sqrt(damping * len(x))
    rows = np.vstack([x[:, of_kept], root * np.eye(len(of_kept))])
    targets = np.vstack([x @ w.T, root * w[:, of_kept].T])
    expected = np.linalg.lstsq(rows, targets)[0].T
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-3, atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), damping=st.sampled_from([1e-3, 0.01, 0.3]))
def test_refit_never_enlarges_the_error(seed: int, damping: float) -> None:
    weight, inputs, kept = problem(seed)
    hessian, width = hessian_of(inputs), weight.shape[1]
    removed = scattered(weight[:, kept], kept, width)
    fitted = scattered(refit(weight, hessian, kept, damp_percent=damping), kept, width)
    before, after = (relative_error([weight], [v], hessian) for v in (removed, fitted))
    assert after <= before * (1 + 1e-5) + 1e-7


def test_all_channels_stay_as_they_are_to_the_bit() -> None:
    weight, inputs, _ = problem(0)
    kept = torch.arange(weight.shape[1])
    assert torch.equal(refit(weight, hessian_of(inputs), kept, damp_percent=0.01), weight)


def test_channels_without_inputs_keep_their_weights() -> None:
    weight, inputs, _ = problem(1)
    inputs[:, 3] = 0
    kept = torch.tensor([0, 3, 5, 6])
    fitted = refit(weight, hessian_of(inputs), kept, damp_percent=0.01)
    assert torch.equal(fitted[:, 1], weight[:, 3])
    assert not torch.equal(fitted[:, 0], weight[:, 0])


def test_redundant_channel_is_replaced_without_an_error() -> None:
    weight, inputs, _ = problem(2)
    inputs[:, 4] = 0.5 * inputs[:, 1] - 2 * inputs[:, 7]
    kept = torch.tensor([i for i in range(12) if i != 4])
    fitted = refit(weight, hessian_of(inputs), kept, damp_percent=1e-6)
    expected = weight[:, kept].clone()
    expected[:, 1] += 0.5 * weight[:, 4]
    expected[:, 6] -= 2 * weight[:, 4]  # channel 7 is the seventh that stays
    torch.testing.assert_close(fitted, expected, rtol=1e-2, atol=1e-2)


def test_overflowed_inputs_are_refused() -> None:
    weight, inputs, _ = problem(3)
    hessian = hessian_of(inputs)
    hessian[0, 0] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        refit(weight, hessian, torch.tensor([0, 1]), damp_percent=0.01)


def test_removed_channels_are_the_others() -> None:
    assert removed_channels(torch.tensor([1, 2, 5]), 7).tolist() == [0, 3, 4, 6]
