"""The moved target solves the least squares it promises to solve."""

import pytest
import torch
from torch import Tensor

from vlpress.quant.methods.gptaq import asymmetric_target
from vlpress.quant.methods.gptq import gptq
from vlpress.quant.methods.hessian.prepared_hessian import prepare_hessian
from vlpress.quant.recipe.scheme import QuantScheme

K, N, T = 48, 20, 400


def paths(noise: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, correlated float inputs and inputs bent by what came before them, ``[K, T]``."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(K, K, generator=generator) / K**0.5
    clean = mix @ torch.randn(K, T, generator=generator) + 0.3 * torch.randn(
        K, T, generator=generator
    )
    bend = torch.eye(K) + noise * torch.randn(K, K, generator=generator) / K**0.5
    return torch.randn(N, K, generator=generator), clean, bend @ clean


def statistics(clean: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    return seen @ seen.t() / T, (clean - seen) @ seen.t() / T


def target_of(
    weight: Tensor, hessian: Tensor, cross: Tensor, strength: float = 0.5, damp: float = 0.01
) -> Tensor:
    prepared = prepare_hessian(hessian, damp_percent=damp)
    return asymmetric_target(weight, weight @ cross, prepared, strength=strength)


def test_target_is_the_least_squares_solution() -> None:
    weight, clean, seen = paths(0.5)
    target = target_of(weight, *statistics(clean, seen), strength=1.0, damp=1e-9)
    expected = torch.linalg.lstsq(seen.t().double(), (weight @ clean).t().double()).solution.t()
    assert torch.allclose(target.double(), expected, atol=1e-4)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("outlier", [1.0, 30.0])
def test_the_shared_float32_factor_gives_the_float64_solution(
    act_order: bool, outlier: float
) -> None:
    """Also with a channel of large inputs, which makes the Hessian ill-conditioned."""
    weight, clean, seen = paths(0.5)
    clean[5], seen[5] = outlier * clean[5], outlier * seen[5]
    hessian, cross = statistics(clean, seen)
    prepared = prepare_hessian(hessian, act_order=act_order)
    target = asymmetric_target(weight, weight @ cross, prepared, strength=1.0)
    H = hessian.double()
    damped = H + 0.01 * H.diagonal().mean() * torch.eye(K)
    change = torch.linalg.solve(damped, (weight.double() @ cross.double()).t()).t()
    assert float((target - weight - change).norm() / change.norm()) < 1e-5


def test_dead_inputs_leave_their_columns_as_they_are() -> None:
    weight, clean, seen = paths(0.5)
    clean[3], seen[3] = 0, 0
    target = target_of(weight, *statistics(clean, seen))
    assert torch.equal(target[:, 3], weight[:, 3])
    assert not torch.equal(target, weight)


def test_equal_paths_leave_the_weight_as_it_is() -> None:
    weight, clean, _ = paths(0.5)
    target = target_of(weight, *statistics(clean, clean))
    assert torch.equal(target, weight) and target is not weight


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_the_correction_grows_with_its_strength(strength: float) -> None:
    weight, clean, seen = paths(0.5)
    whole = target_of(weight, *statistics(clean, seen), strength=1.0) - weight
    part = target_of(weight, *statistics(clean, seen), strength=strength) - weight
    assert torch.allclose(part, strength * whole, atol=1e-5)


def test_gptq_on_the_target_answers_better_to_bent_inputs() -> None:
    weight, clean, seen = paths(0.3)
    hessian, cross = statistics(clean, seen)
    scheme = QuantScheme(bits=4, group_size=16)
    expected = weight @ clean

    def error(target: Tensor) -> float:
        quantized = gptq(target, hessian, scheme).weight.dequantize()
        return float(((quantized @ seen - expected) ** 2).mean() / (expected**2).mean())

    plain, moved = error(weight), error(target_of(weight, hessian, cross, strength=1.0))
    assert moved < 0.5 * plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"deviation": torch.ones(N, 3)}, rf"deviation is \({N}, 3\).*\({N}, {K}\)"),
        ({"deviation": torch.full((N, K), torch.inf)}, "deviation is not finite"),
        ({"strength": 1.5}, "strength is 1.5"),
        ({"hessian": prepare_hessian(-torch.eye(K))}, "damping 1;"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    weight, clean, seen = paths(0.5)
    hessian, cross = statistics(clean, seen)
    given = {"deviation": weight @ cross, "hessian": prepare_hessian(hessian), **change}
    with pytest.raises(ValueError, match=message):
        asymmetric_target(weight, **given)  # type: ignore[arg-type]
