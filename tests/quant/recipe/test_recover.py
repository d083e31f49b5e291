"""The [recover] table: its defaults, and the keys that belong together."""

from __future__ import annotations

from typing import Any

import pytest

from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.recover import Recover, describe_recovery

STEP = {"method": "rtn", "bits": 4}


def read(**table: Any) -> Recipe:
    return Recipe.from_dict({"step": [STEP], "recover": table})


def test_defaults_depend_on_what_is_trained() -> None:
    scales, rounding = read(params="scales"), read(params="rounding")
    assert scales.recover is not None and rounding.recover is not None
    assert scales.recover.teachers == ("self",) and scales.recover.epochs == 2
    assert rounding.recover.teachers is None and rounding.recover.steps == 160
    assert rounding.recover.is_blockwise and not scales.recover.is_blockwise
    assert rounding.needs_calibration and not scales.needs_calibration
    for recipe in (scales, rounding):
        assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert "recover" not in Recipe.from_dict({"step": [STEP]}).to_dict()


def test_teachers_have_weights_that_sum_to_one() -> None:
    shares = Recover(params=("norms",), teachers=("self", "other"), weights=(1, 3)).teacher_shares
    assert shares == [("self", 0.25), ("other", 0.75)]
    assert Recover(params=("scales",), targets="answers").teacher_shares == []


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "recover.params is missing"),
        ({"params": "biases"}, "recover.params.* is 'biases'; allowed: scales, norms"),
        ({"params": ["rounding", "scales"]}, "allowed: rounding alone, or any of scales"),
        ({"params": "scales", "freeze": [1.0]}, "freeze does not belong to params scales"),
        ({"params": "rounding", "epochs": 2}, "epochs does not belong to params rounding"),
        ({"params": "rounding", "freeze": [0.5, 0.4, 1.0]}, "rising shares that end with 1.0"),
        ({"params": "rounding", "freeze": [0.5]}, "rising shares that end with 1.0"),
        ({"params": "scales", "targets": "answers", "teachers": ["a"]}, "allowed: one of them"),
        ({"params": "scales", "weights": [1, 2]}, "2 numbers for 1 teachers"),
        ({"params": "scales", "lr": 0}, "recover.lr is 0; allowed: a number above 0"),
        ({"params": "scales", "held_out": 1}, "recover.held_out is 1; allowed"),
        ({"params": "scales", "rate": 1}, "unknown key 'rate'"),
    ],
)
def test_refusals(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(**table)


def test_a_recovery_is_described_in_a_line() -> None:
    trained = {
        "params": ["scales"],
        "training_samples": 7,
        "held_out_samples": 1,
        "held_out_loss": [0.5, 0.25, 0.3],
    }
    assert describe_recovery(trained) == (
        "recovery of scales has seen 7 samples: loss 0.25 after 0.5, on 1 others"
    )
    blocks = [{"start": 0.3, "best": 0.2}, {"start": 0.1, "best": 0.1}]
    assert "0.75 times" in describe_recovery({"params": ["rounding"], "blocks": blocks})
