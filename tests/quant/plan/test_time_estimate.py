import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import small_config

from vlpress.calib import tap_groups
from vlpress.model.config import ModelConfig
from vlpress.quant.methods.smoothquant import ALPHAS
from vlpress.quant.plan.plan import Plan, make_plan
from vlpress.quant.plan.time_estimate import Probe, cached_probe, estimate_time, probe
from vlpress.quant.recipe.recipe import Recipe

MACS = Probe(mac=1, mac32=0, hessian=0, column=0, solve_mac=0, search=0)
HESSIANS = Probe(mac=0, mac32=0, hessian=1, column=0, solve_mac=0, search=0)
SQUARES = Probe(mac=0, mac32=1, hessian=1, column=0, solve_mac=0, search=0)
COLUMNS = Probe(mac=0, mac32=0, hessian=0, column=1, solve_mac=0, search=0)
SEARCHING = Probe(mac=0, mac32=0, hessian=0, column=0, solve_mac=0, search=1)
SOLVING = Probe(mac=0, mac32=0, hessian=0, column=0, solve_mac=1, search=0)


def plan(method: str = "gptq", *targets: str, before: dict[str, Any] | None = None) -> Plan:
    step: dict[str, Any] = {"method": method, "bits": 8, "group_size": -1}
    if targets:
        step["targets"] = list(targets)
    config = ModelConfig.from_dict(small_config())
    return make_plan(config, Recipe.from_dict({"step": [*([before] if before else []), step]}))


# Widths 64 and 128, 32 for k and v; the vision tower's 32, 96 and 36, its merger's 128 and 64.
QKV, OUT, GATE_UP, DOWN = 64 * 64 + 2 * 64 * 32, 64 * 64, 2 * 64 * 128, 128 * 64
VISION = 4 * (32 * 96 + 32 * 32 + 3 * 32 * 36)
MERGER = 128 * 128 + 128 * 64


def test_passes_by_hand() -> None:
    layer = QKV + OUT + GATE_UP + DOWN
    inner = QKV + OUT + GATE_UP
    # A block's samples wait where they are; nothing runs after the last input.
    assert estimate_time(plan(), MACS) == (0, 2 * VISION + MERGER + layer + inner)
    once = 2 * VISION + MERGER + layer + inner + inner
    assert estimate_time(plan(), MACS, true_sequential=False) == (0, once)
    assert estimate_time(plan(), SQUARES) == (0, 2 * (64**2 + 64**2 + 64**2 + 128**2))
    assert estimate_time(plan(), HESSIANS) == estimate_time(plan(), SQUARES)


def test_nothing_behind_the_last_solved_layer_counts() -> None:
    first = plan("gptq", "visual.blocks.0.attn.qkv")
    assert estimate_time(first, MACS) == (0, 0)
    assert estimate_time(first, SQUARES) == (0, 4 * 32**2)
    assert estimate_time(plan("rtn"), Probe(1, 1, 1, 1, 1, 1)) == (0, 0)


def test_solving_by_hand() -> None:
    assert estimate_time(plan(), COLUMNS) == (2 * (6 * 64 + 128), 0)
    layer = QKV + OUT + GATE_UP + DOWN
    assert estimate_time(plan(), SEARCHING) == (2 * layer, 0)
    seconds, _ = estimate_time(plan("gptq", "model.layers.1.mlp.down_proj"), SOLVING)
    assert seconds == pytest.approx(128**3 / 6 + 1.5 * 128**2 * 64)


def test_transforms_by_hand() -> None:
    layer = QKV + OUT + GATE_UP + DOWN
    _, plain = estimate_time(plan(), MACS)
    _, fixed = estimate_time(plan(before={"method": "smoothquant"}), MACS)
    assert fixed - plain == 2 * (QKV + OUT + GATE_UP)  # one pass as far as the last input
    _, searched = estimate_time(plan(before={"method": "smoothquant", "alpha": "search"}), MACS)
    assert searched - fixed == 2 * layer * (2 + 5 * len(ALPHAS)) / 4  # four bindings
    only = {"method": "awq", "targets": ["model.layers.1.mlp.down_proj"], "points": 5}
    seconds, awq = estimate_time(plan(before=only), MACS)
    assert (seconds, awq - plain) == (0, QKV + OUT + GATE_UP)
    seconds, squares = estimate_time(plan(before=only), SQUARES)
    assert seconds == 10 * 128 * DOWN
    assert squares - estimate_time(plan(), SQUARES)[1] == 128**2
    rounded = estimate_time(plan("rtn", before=only), MACS)
    assert rounded == estimate_time(plan(before=only), MACS)  # samples run all the same


def test_the_float_stream_by_hand() -> None:
    layer = QKV + OUT + GATE_UP + DOWN
    inner = QKV + OUT + GATE_UP
    _, plain = estimate_time(plan(), MACS)
    _, both = estimate_time(plan("gptaq"), MACS)
    assert both - plain == layer + inner  # the float state runs as the other one does
    _, block = estimate_time(plan("gptaq"), MACS, true_sequential=False)
    _, once = estimate_time(plan(), MACS, true_sequential=False)
    assert block - once == layer + inner  # in the first block, inputs are those of the float model
    squares = 2 * (3 * 64**2 + 128**2)
    assert estimate_time(plan("gptaq"), SQUARES) == (0, 2 * squares - 64**2)
    name = "model.layers.1.mlp.down_proj"
    alone, first = (estimate_time(plan(method, name), SOLVING)[0] for method in ("gptaq", "gptq"))
    assert alone - first == pytest.approx(2 * 128**2 * 64)


def test_the_float_stream_begins_at_the_first_quantized_block() -> None:
    config = ModelConfig.from_dict(small_config())
    grid = {"bits": 8, "group_size": -1}

    def macs(tower: str, decoder: str) -> float:
        steps = [
            {"method": tower, "targets": ["visual.blocks.1.attn.qkv"], **grid},
            {"method": decoder, "targets": ["model.layers.0.self_attn.*"], **grid},
        ]
        return estimate_time(make_plan(config, Recipe.from_dict({"step": steps})), MACS)[1]

    plain = macs("gptq", "gptq")
    # Twice through the second vision block, the merger and as far as the inputs of the decoder's.
    assert macs("gptq", "gptaq") - plain == VISION + MERGER + QKV
    assert macs("gptaq", "gptq") == plain  # the first input needs no run of its own


def test_experts_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts before their last observed input run twice, once for it and once for the output."""
    config = ModelConfig.from_dict(small_config("qwen3_vl_moe"))
    layers, active, gate_up, down = 3, 2, 2 * 64 * 96, 96 * 64
    step = {"method": "gptq", "bits": 8, "group_size": -1}
    of_experts = make_plan(config, Recipe.from_dict({"step": [step]}))
    of_block = [row.spec for row in of_experts.rows if ".layers.1." in row.name]
    before = sum(spec.weights for spec in of_block if spec.expert is None)
    rows = [row.spec for row in of_experts.rows if row.spec.part == "tower"]
    unit = config.vision.merge_unit
    tower = sum(spec.weights * (unit if spec.stage == "vision" else 1) for spec in rows)
    layer, last = before + active * (gate_up + down), before + active * gate_up
    again = active * gate_up
    expected = tower + (layers - 1) * (layer + again) + last
    assert estimate_time(of_experts, MACS) == (0, expected)
    whole = tower + (layers - 1) * (last + layer) + last
    assert estimate_time(of_experts, MACS, true_sequential=False) == (0, whole)
    monkeypatch.setattr(tap_groups, "OBSERVED_BYTES", 1)
    assert estimate_time(of_experts, MACS) == (0, expected)
    # A pass for each of four experts, and one for the attention.
    five = whole + 4 * layers * last
    assert estimate_time(of_experts, MACS, true_sequential=False) == (0, five)


def test_gradients_by_hand() -> None:
    layer = QKV + OUT + GATE_UP + DOWN
    _, plain = estimate_time(plan(), MACS)
    _, both = estimate_time(plan(), MACS, gradient=True)
    assert both - plain == 2 * VISION + MERGER + 2 * 2 * layer
    assert estimate_time(plan("rtn"), MACS, gradient=True) == (0, 0)


def test_probe_is_quick_and_gives_rates() -> None:
    start = time.perf_counter()
    rates = probe(torch.device("cpu"), torch.bfloat16)
    assert time.perf_counter() - start < 20  # on a busy core; a second on a free one
    assert 0 < rates.mac < 1e-6
    assert 0 < rates.mac32 < 1e-6
    assert 0 < rates.hessian < 1e-6
    assert 0 < rates.solve_mac < 1e-6
    assert 0 <= rates.column < 0.1
    assert 0 <= rates.search < 1e-4
    assert 0 < rates.read < 1e-6


def test_rates_are_cached_by_dtype_and_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLPRESS_CACHE", str(tmp_path))
    numbers = iter(range(1, 9))
    monkeypatch.setattr(
        "vlpress.quant.plan.time_estimate.probe", lambda *_: Probe(next(numbers), 0, 0, 0, 0, 0)
    )
    cpu = torch.device("cpu")
    first, entry = cached_probe(cpu, torch.bfloat16)
    again, reused = cached_probe(cpu, torch.bfloat16)
    assert first == again == MACS and not entry.is_reused and reused.is_reused
    assert cached_probe(cpu, torch.float32)[0].mac == 2
    assert cached_probe(cpu, torch.bfloat16, refresh=True)[0].mac == 3
    monkeypatch.setattr("torch.get_num_threads", lambda: 99)
    assert cached_probe(cpu, torch.bfloat16)[0].mac == 4
