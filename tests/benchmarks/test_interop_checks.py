"""The comparisons with other engines must detect differences."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import checks
import pytest
import torch
from torch import Tensor, nn

from vlpress.calib.samples.draw import load_samples
from vlpress.model.loading import load_model, resolve_model
from vlpress.quant.methods.affine import QuantizedWeight
from vlpress.quant.recipe.scheme import QuantScheme
from vlpress.quant.runtime.linear import QuantLinear

ROWS, COLUMNS, GROUP = 6, 16, 8


class EngineLayer(nn.Module):
    """An engine's layer with unpacked integers."""

    qweight: Tensor
    zeros: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("qweight", weight.integers.t().int())
        self.register_buffer("zeros", weight.zero_points.t().int())
        self.register_buffer("scales", weight.scales.t().clone())
        self.register_buffer("bias", bias)
        self.order = weight.column_groups().long()

    def forward(self, x: Tensor) -> Tensor:
        out = x @ (self.scales[self.order] * (self.qweight - self.zeros[self.order]))
        return out if self.bias is None else out + self.bias


def make_weight(*, reordered: bool = False) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(0)

    def integers(*shape: int) -> Tensor:
        return torch.randint(0, 16, shape, generator=generator, dtype=torch.uint8)

    groups = COLUMNS // GROUP
    order = torch.randperm(COLUMNS, generator=generator) % groups
    return QuantizedWeight(
        integers=integers(ROWS, COLUMNS),
        scales=torch.rand(ROWS, groups, generator=generator) + 0.5,
        zero_points=integers(ROWS, groups),
        scheme=QuantScheme(4, GROUP, symmetric=False),
        group_index=order.int() if reordered else None,
    )


def compare(own: QuantizedWeight, engine: QuantizedWeight) -> tuple[bool, ...]:
    bias = torch.arange(ROWS).float()
    layer = EngineLayer(engine, bias)
    with torch.inference_mode():
        return checks.compare_layer(QuantLinear(own, bias), layer, torch.float32)


@pytest.mark.parametrize("reordered", [False, True])
def test_equal_layers(reordered: bool) -> None:
    weight = make_weight(reordered=reordered)
    assert compare(weight, weight) == (True, True, True, True)


def test_a_layer_without_bias() -> None:
    weight = make_weight()
    with torch.inference_mode():
        same = checks.compare_layer(QuantLinear(weight), EngineLayer(weight, None), torch.float32)
    assert same == (True, True, True, True)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("integers", (False, True, True, False)),
        ("zero_points", (True, False, True, False)),
        ("scales", (True, True, False, False)),
    ],
)
def test_one_different_number(part: str, expected: tuple[bool, ...]) -> None:
    weight = make_weight()
    changed = getattr(weight, part).clone()
    changed[2, 1] += 1 if changed[2, 1] < 15 else -1
    assert compare(weight, replace(weight, **{part: changed})) == expected


def test_another_order_of_groups_is_detected() -> None:
    reordered = make_weight(reordered=True)
    integers, *_, forward = compare(reordered, replace(reordered, group_index=None))
    assert not forward
    assert integers  # the integers themselves are the same


def test_layers_quantized_by_one_side_only() -> None:
    layers = {"a": QuantLinear(make_weight())}
    engine = checks.Opened({}, lambda prompt: torch.zeros(1))
    (row,) = checks.compare_layers(layers, engine)
    assert row == ("quantized layers", "a is quantized only here", False)


@pytest.mark.parametrize("wrong", [torch.nan, 1.0])
def test_wrong_logits_are_detected(wrong: float) -> None:
    model = load_model("tiny", device="cpu", dtype="fp32")
    (prompt,) = checks.prompts(resolve_model("tiny"), seed=3, number=1)

    def ask(change: float) -> Any:
        def logits(_: Any) -> Tensor:
            out: Tensor = model([prompt])[0].clone()
            out[-1, -1] += change
            return out

        return checks.Opened({}, logits)

    with torch.inference_mode():
        assert checks.compare_logits(model, ask(0.0), [prompt])[2]
        assert not checks.compare_logits(model, ask(wrong), [prompt])[2]


def test_exception_of_an_engine_is_a_failed_row(tmp_path: Path) -> None:
    def break_down() -> Iterator[tuple[str, str, bool]]:
        yield "integers", "equal", True
        raise KeyError("g_idx\nand more")

    table = checks.Table("engine", "1.0")
    table.check("gptq", break_down)
    table.write(tmp_path / "rows.json")
    first, second = json.loads((tmp_path / "rows.json").read_text())
    assert first["passed"] and first["compared"] == "integers"
    assert not second["passed"] and "KeyError" in second["result"]


def test_prompts_of_different_seeds_differ() -> None:
    seeds = (checks.CALIBRATION_SEED, checks.COMPARISON_SEED)
    first, second = ([s.messages for s in load_samples(None, n=2, seed=seed)] for seed in seeds)
    assert first != second
