"""Masks in recipes: their keys, the statistics that they need, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from vlpress.calib.statistics import HESSIAN
from vlpress.quant.recipe.mask import PATTERNS, MaskRule
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.steps.step import Step


def step(**keys: Any) -> Step:
    recipe = Recipe.from_dict({"name": "test", "step": [{"method": "gptq", "bits": 4} | keys]})
    return recipe.steps[0]


def test_rules_by_key() -> None:
    assert step().mask is None
    assert step(keep=0.5).mask == MaskRule(0.5, "sparsegpt")
    assert step(method="rtn", keep=0.5).mask == MaskRule(0.5, "wanda")
    half = step(keep="2:4", score="magnitude").mask
    assert half is not None
    assert (half.pattern, half.label) == ((2, 4), "keep 2:4 by magnitude")
    share = MaskRule(0.3, "wanda")
    assert (share.pattern, share.kept(128), share.kept(0)) == (None, 38, 0)
    assert len(PATTERNS) == 1 + 3 + 7
    with pytest.raises(ValueError, match="keep is '2:4'"):
        MaskRule("2:4", "wanda").kept(128)


@pytest.mark.parametrize("method", ["gptq", "gptaq", "rtn"])
def test_a_step_with_a_mask_round_trips(method: str) -> None:
    for keep in (0.75, "4:8"):
        data = {"method": method, "bits": 4, "keep": keep, "score": "magnitude"}
        recipe = Recipe.from_dict({"name": "test", "step": [data]})
        assert recipe.to_dict()["step"][0].items() >= data.items()
        assert Recipe.from_dict(recipe.to_dict()) == recipe
        assert recipe.steps[0].label == f"{method} int4 g128 sym, keep {keep} by magnitude"
    plain = Recipe.from_dict({"name": "test", "step": [{"method": method, "bits": 4}]})
    assert not {"keep", "score"} & plain.to_dict()["step"][0].keys()


def test_rounding_is_calibrated_for_energies_alone() -> None:
    assert not step(method="rtn", keep=0.5, score="magnitude").uses_activations
    assert step(method="rtn", keep=0.5).statistics == {HESSIAN}


SPARSE = {"keep": "2:4", "score": "sparsegpt"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"keep": 1}, r"keep is 1; allowed: a number above 0 and below 1, .* 2:4"),
        ({"keep": 0.0}, r"keep is 0\.0; allowed"),
        ({"keep": "4:2"}, r"keep is '4:2'; allowed: .* 7:8"),
        ({"keep": "2:16"}, r"keep is '2:16'; allowed"),
        ({"keep": True}, r"keep is True; allowed"),
        ({"keep": 0.5, "score": "taylor"}, r"score is 'taylor'; allowed: magnitude, .* sparsegpt"),
        ({"score": "wanda"}, r"score is 'wanda' without keep; allowed: with keep"),
        (
            {"method": "rtn", "keep": 0.5, "score": "sparsegpt"},
            r"score is 'sparsegpt' with method rtn; allowed: magnitude, wanda; .* gptq ",
        ),
        (SPARSE, r"act_order is true with keep '2:4' and score 'sparsegpt'; allowed: false"),
        (
            SPARSE | {"act_order": False, "block_size": 6},
            r"block_size is 6 with keep '2:4' .*; allowed: multiples of 4",
        ),
    ],
)
def test_rejects(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        step(**keys)
    assert "step[0]" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_order_is_free_where_no_neighbours_are_chosen_together() -> None:
    assert step(keep="2:4", score="wanda", act_order=True).mask == MaskRule("2:4", "wanda")
    assert step(keep=0.5, score="sparsegpt", block_size=6).mask == MaskRule(0.5, "sparsegpt")
    solved = step(**SPARSE, act_order=False, block_size=8)
    assert solved.mask == MaskRule("2:4", "sparsegpt")
