"""Experts are observed a few at a time: the statistics of observing all of them at once."""

from __future__ import annotations

import weakref
from collections import Counter

import pytest
import torch
from sequential_runs import run_sequential
from tiny_models import prompts, small_config, small_model
from torch import Tensor

from vlpress.calib import tap_groups
from vlpress.calib.fixed_weights import FixedWeights
from vlpress.calib.observers import CrossMoment, Hessian
from vlpress.calib.tap_groups import TapGroup
from vlpress.calib.token_weights import find_token_weights
from vlpress.model.expert_linear import ExpertLinear
from vlpress.model.families import LinearSpec, family_of
from vlpress.model.qwen_vl import QwenVL

LARGE = 2**40


def decoder(model: QwenVL) -> list[LinearSpec]:
    linears = family_of(model.config).linears(model.config)
    return [spec for spec in linears if spec.part == "decoder"]


def statistics(
    bound: int, *, experts_only: bool, asymmetric: bool, true_sequential: bool
) -> dict[str, Tensor]:
    """Calibrate and change all layers; return Hessians and cross moments by layer."""
    model = small_model(small_config("qwen3_vl_moe"))
    targets = [s for s in decoder(model) if s.expert is not None or not experts_only]
    seen: dict[str, Tensor] = {}

    def solve(group: TapGroup, hessian: Hessian, cross: CrossMoment | None) -> None:
        seen[group.linears[0].name] = hessian.values.clone()
        if cross is not None:
            seen[f"{group.linears[0].name} (cross)"] = cross.values.clone()
        for spec in group.linears:
            weight = model.get_submodule(spec.name).weight
            assert isinstance(weight, Tensor)
            weight.data.mul_(0.7)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tap_groups, "OBSERVED_BYTES", bound)
        run_sequential(
            model,
            prompts(model.config),
            targets,
            solve,
            asymmetric=[spec.name for spec in targets] if asymmetric else (),
            token_weights=find_token_weights(FixedWeights(0.25, 2.0), model, []),
            true_sequential=true_sequential,
            all_experts=asymmetric,  # which statistics of the float model need
        )
    return seen


@pytest.mark.parametrize("true_sequential", [True, False])
@pytest.mark.parametrize("experts_only", [True, False])
@pytest.mark.parametrize("asymmetric", [True, False])
def test_statistics_do_not_depend_on_the_bound(
    true_sequential: bool, experts_only: bool, asymmetric: bool
) -> None:
    one, all_at_once = (
        statistics(
            bound,
            experts_only=experts_only,
            asymmetric=asymmetric,
            true_sequential=true_sequential,
        )
        for bound in (1, LARGE)
    )
    assert one.keys() == all_at_once.keys()
    assert all(torch.equal(one[name], all_at_once[name]) for name in one)
    if asymmetric:
        first, *later = (one[name] for name in one if name.endswith("gate_proj (cross)"))
        assert first.any() == (true_sequential and not experts_only)
        assert all(cross.any() for cross in later[4:])


def run(bound: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Counter[str], int]:
    """Calibrate the experts; count the calls of their layers, and the most Hessians of a pass."""
    model = small_model(small_config("qwen3_vl_moe"))
    calls: Counter[str] = Counter()
    living: weakref.WeakSet[Hessian] = weakref.WeakSet()
    most = 0
    for name, module in model.named_modules():
        if isinstance(module, ExpertLinear):
            module.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    create = Hessian.__init__

    def record(hessian: Hessian, *args: object) -> None:
        create(hessian, *args)  # type: ignore[arg-type]
        living.add(hessian)

    def solve(group: TapGroup, hessian: Hessian, cross: object) -> None:
        nonlocal most
        most = max(most, len(living))

    with monkeypatch.context() as patch:
        patch.setattr(tap_groups, "OBSERVED_BYTES", bound)
        patch.setattr(Hessian, "__init__", record)
        run_sequential(model, prompts(model.config), decoder(model), solve)
    return calls, most


def test_only_the_hessians_of_a_pass_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, most = run(1, monkeypatch)
    assert most == 1
    all_calls, all_most = run(LARGE, monkeypatch)
    assert all_most == 4
    assert calls == all_calls  # no expert runs more often


def test_solved_hessians_are_freed_within_a_pass() -> None:
    model = small_model(small_config("qwen3_vl_moe"))
    solved: weakref.WeakSet[Hessian] = weakref.WeakSet()

    def solve(group: TapGroup, hessian: Hessian, cross: object) -> None:
        assert len(solved) == 0, group.linears[0].name
        solved.add(hessian)

    run_sequential(model, prompts(model.config), decoder(model), solve)
