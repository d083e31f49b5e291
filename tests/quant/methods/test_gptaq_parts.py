"""The moved target solves the least squares it promises to solve."""

import pytest
import torch
from torch import Tensor

from vlpress.quant.methods.gptaq import asymmetric_target
from vlpress.quant.methods.gptq import gptq
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


def test_target_is_the_least_squares_solution() -> None:
    weight, clean, seen = paths(0.5)
    target = asymmetric_target(weight, *statistics(clean, seen), strength=1.0, damp_percent=1e-9)
    expected = torch.linalg.lstsq(seen.t().double(), (weight @ clean).t().double()).solution.t()
    assert torch.allclose(target.double(), expected, atol=1e-4)


def test_equal_paths_leave_the_weight_as_it_is() -> None:
    weight, clean, _ = paths(0.5)
    target = asymmetric_target(weight, *statistics(clean, clean))
    assert torch.equal(target, weight) and target is not weight


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_the_correction_grows_with_its_strength(strength: float) -> None:
    weight, clean, seen = paths(0.5)
    whole = asymmetric_target(weight, *statistics(clean, seen), strength=1.0) - weight
    part = asymmetric_target(weight, *statistics(clean, seen), strength=strength) - weight
    assert torch.allclose(part, strength * whole, atol=1e-5)


def test_gptq_on_the_target_answers_better_to_bent_inputs() -> None:
    weight, clean, seen = paths(0.3)
    hessian, cross = statistics(clean, seen)
    scheme = QuantScheme(bits=4, group_size=16)
    expected = weight @ clean

    def error(target: Tensor) -> float:
        quantized = gptq(target, hessian, scheme).weight.dequantize()
        return float(((quantized @ seen - expected) ** 2).mean() / (expected**2).mean())

    plain, moved = error(weight), error(asymmetric_target(weight, hessian, cross, strength=1.0))
    assert moved < 0.5 * plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hessian": torch.eye(3)}, r"hessian is \(3, 3\).* 48"),
        ({"cross": torch.full((K, K), torch.inf)}, "cross is not finite"),
        ({"strength": 1.5}, "strength is 1.5"),
        ({"damp_percent": 0.0}, "damp_percent is 0.0"),
        ({"hessian": -torch.eye(K)}, "damping 1;"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    weight, clean, seen = paths(0.5)
    hessian, cross = statistics(clean, seen)
    given = {"hessian": hessian, "cross": cross, **change}
    with pytest.raises(ValueError, match=message):
        asymmetric_target(weight, **given)  # type: ignore[arg-type]
