"""Groups of layers, and the passes that observe them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import small_config

from vlpress.calib import tap_groups
from vlpress.calib.statistics import CROSS_MOMENT, HESSIAN
from vlpress.calib.tap_groups import TapGroup, group_bytes, observation_passes
from vlpress.model.config import ModelConfig
from vlpress.model.families import family_of

ATTENTION = [("qkv", None), ("o", None)]
GATE_UP, DOWN = ([(f"expert_{tap}", e) for e in range(4)] for tap in ("gate_up", "down"))
WIDE, NARROW = HESSIAN.memory(64), HESSIAN.memory(96)


def groups(family: str = "qwen3_vl_moe") -> list[TapGroup]:
    config = ModelConfig.from_dict(small_config(family))
    path = family_of(config).decoder.block_path(1)
    return tap_groups.tap_groups(family_of(config).linears(config), path)


def names(passes: Sequence[Sequence[TapGroup]]) -> list[list[tuple[str, int | None]]]:
    return [[(group.tap, group.expert) for group in of_pass] for of_pass in passes]


def passes(bound: int, *, true_sequential: bool) -> list[list[tuple[str, int | None]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tap_groups, "OBSERVED_BYTES", bound)
        return names(list(observation_passes(groups(), {}, true_sequential=true_sequential)))


def test_experts_of_a_tap_are_observed_as_memory_allows() -> None:
    one = [[of_tap] for of_tap in ATTENTION]
    assert passes(2**40, true_sequential=True) == [*one, GATE_UP, DOWN]
    assert passes(2 * NARROW, true_sequential=True) == [
        *one,
        *(GATE_UP[:3], GATE_UP[3:]),
        *(DOWN[:2], DOWN[2:]),
    ]
    assert passes(0, true_sequential=True) == [*one, *([group] for group in GATE_UP + DOWN)]


def test_layers_before_the_experts_are_replaced_last_without_true_sequential() -> None:
    assert passes(2**40, true_sequential=False) == [ATTENTION + GATE_UP + DOWN]
    pairs = [list(pair) for pair in zip(GATE_UP, DOWN, strict=True)]
    assert passes(0, true_sequential=False) == [*pairs, ATTENTION]
    assert passes(2 * (WIDE + NARROW), true_sequential=False) == [
        GATE_UP[:2] + DOWN[:2],
        GATE_UP[2:] + DOWN[2:],
        ATTENTION,
    ]


@pytest.mark.parametrize("true_sequential", [True, False])
def test_layers_of_dense_models_are_not_split(
    true_sequential: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tap_groups, "OBSERVED_BYTES", 0)
    dense = groups("qwen3_vl")
    expected = [[group] for group in dense] if true_sequential else [dense]
    assert list(observation_passes(dense, {}, true_sequential=true_sequential)) == expected


@pytest.mark.parametrize("true_sequential", [True, False])
def test_layers_that_round_differently_share_no_statistics(true_sequential: bool) -> None:
    config = ModelConfig.from_dict(small_config("qwen2_5_vl"))
    specs = family_of(config).linears(config)
    path = family_of(config).decoder.block_path(0)
    roundings = {f"{path}.self_attn.{name}_proj": torch.round for name in "qo"}
    made = tap_groups.tap_groups(specs, path, roundings)
    by_name = [[spec.name.removeprefix(path) for spec in group.linears] for group in made]
    assert by_name == [
        [".self_attn.q_proj"],
        [".self_attn.k_proj", ".self_attn.v_proj"],
        [".self_attn.o_proj"],
        [".mlp.gate_proj", ".mlp.up_proj"],
        [".mlp.down_proj"],
    ]
    assert [group.rounding for group in made] == [torch.round, None, torch.round, None, None]
    expected = [[group] for group in made] if true_sequential else [made]
    assert list(observation_passes(made, {}, true_sequential=true_sequential)) == expected


@given(bound=st.integers(0, 12 * NARROW), true_sequential=st.booleans(), asymmetric=st.booleans())
def test_passes_stay_within_the_bound(bound: int, true_sequential: bool, asymmetric: bool) -> None:
    of_block = groups()
    statistics = [CROSS_MOMENT] if asymmetric else []
    needs = {spec.name: statistics for group in of_block for spec in group.linears}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tap_groups, "OBSERVED_BYTES", bound)
        made = list(observation_passes(of_block, needs, true_sequential=true_sequential))
    assert Counter(chain(*names(made))) == Counter(chain(*names([of_block])))
    for of_pass in made:
        experts = {group.expert for group in of_pass}
        size = sum(group_bytes(group, needs) for group in of_pass)
        assert size <= bound or len(experts) == 1
    assert group_bytes(of_block[0], needs) == WIDE + asymmetric * CROSS_MOMENT.memory(64)
