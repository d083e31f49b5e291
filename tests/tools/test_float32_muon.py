import float32_muon
import pytest
import torch
from torch.optim import Muon, Optimizer, _muon


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_iteration_agrees_with_torchs_bf16_iteration(shape: tuple[int, int]) -> None:
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    settings = ((3.4445, -4.775, 2.0315), 5, 1e-7)
    own = float32_muon.orthogonalized(gradient, *settings)
    theirs = _muon._zeropower_via_newtonschulz(gradient, *settings).float()
    assert own.dtype == torch.float32
    assert (own - theirs).norm() / own.norm() < 0.05  # bf16 has 8 bits, over five iterations


def test_iteration_brings_singular_values_near_one() -> None:
    gradient = torch.randn(48, 16, generator=torch.Generator().manual_seed(1))
    own = float32_muon.orthogonalized(gradient, (3.4445, -4.775, 2.0315), 5, 1e-7)
    values = torch.linalg.svdvals(own)
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3


def test_install_lets_muon_iterate_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_muon, "_zeropower_via_newtonschulz", None)  # restored after the test
    float32_muon.install()
    weight = torch.nn.Parameter(torch.zeros(8, 8))
    weight.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(2))
    expected = float32_muon.orthogonalized(weight.grad, (3.4445, -4.775, 2.0315), 5, 1e-7)
    muon: Optimizer = Muon([weight], lr=1.0, momentum=0.0, nesterov=False, weight_decay=0.0)
    muon.step()
    assert torch.equal(weight.detach(), -expected)
