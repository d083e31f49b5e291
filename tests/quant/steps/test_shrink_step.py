from typing import Any

import pytest

from vlpress.common.validation import parse
from vlpress.quant.steps.shrink import ShrinkStep

WIDTH: dict[str, Any] = {"width": "mlp", "keep": 0.875}


def test_defaults_of_each_kind() -> None:
    assert ShrinkStep(**WIDTH).to_dict() == {
        "method": "shrink",
        "width": "mlp",
        "keep": 0.875,
        "refit": True,
        "targets": ["decoder"],
        "multiple": 128,
        "damp_percent": 0.01,
        "score": "wanda",
        "seed": 0,
    }
    assert ShrinkStep(layers=3).to_dict() == {
        "method": "shrink",
        "layers": 3,
        "score": "influence",
        "seed": 0,
    }
    assert ShrinkStep(drop_layers=(4, 2)).to_dict() == {"method": "shrink", "drop_layers": [4, 2]}


@pytest.mark.parametrize("options", [WIDTH, {"layers": 3}, {"drop_layers": [4, 2]}])
def test_plain_data_is_read_back(options: dict[str, Any]) -> None:
    step = parse(ShrinkStep, options)
    values = step.to_dict()
    assert values.pop("method") == "shrink"
    assert parse(ShrinkStep, values) == step


@pytest.mark.parametrize(
    ("options", "uses"),
    [
        (WIDTH, True),
        (WIDTH | {"score": "magnitude"}, True),
        (WIDTH | {"score": "magnitude", "refit": False}, False),
        (WIDTH | {"score": "wanda", "refit": False}, True),
        (WIDTH | {"score": "random", "refit": False}, False),
        ({"layers": 3}, True),
        ({"layers": 3, "score": "random"}, False),
        ({"drop_layers": [1]}, False),
    ],
)
def test_samples_are_used_only_if_something_is_measured(
    options: dict[str, Any], uses: bool
) -> None:
    assert parse(ShrinkStep, options).uses_samples is uses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "shrink has none; allowed: one of width, layers, drop_layers"),
        (WIDTH | {"layers": 3}, "shrink has width and layers; allowed: one of"),
        ({"width": "mlp"}, "keep is missing; it is required with width"),
        (WIDTH | {"keep": 1.5}, r"keep is 1.5; allowed: a number"),
        (WIDTH | {"keep": 0}, r"keep is 0; allowed: a number"),
        ({"width": "heads", "keep": 0.5}, "width is 'heads'; allowed: mlp"),
        ({"layers": 3, "keep": 0.5}, "keep has no meaning with layers; remove it"),
        ({"layers": 3, "refit": False}, "refit has no meaning with layers; remove it"),
        ({"drop_layers": [1], "seed": 1}, "seed has no meaning with drop_layers; remove it"),
        (WIDTH | {"score": "influence"}, "score is 'influence' with width; allowed: wanda, mag"),
        ({"layers": 3, "score": "wanda"}, "score is 'wanda' with layers; allowed: influence"),
        ({"drop_layers": [1, 1]}, "allowed: each layer once"),
        ({"drop_layers": []}, "drop_layers is .*; allowed: a list of layer numbers"),
        (WIDTH | {"targets": ["head"]}, "allowed: .*decoder, tower"),
        (WIDTH | {"multiple": 0}, "multiple is 0; allowed: a whole number, at least 1"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(ShrinkStep, options)
