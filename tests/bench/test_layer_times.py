"""Times of single layers, for searches under a latency budget."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_tiny_config

from vlpress.bench import layer_times, timing
from vlpress.bench.layer_times import time_layers
from vlpress.eval.search.run import latency_table, layer_shapes
from vlpress.model.families import family_of
from vlpress.quant.recipe.scheme import QuantScheme
from vlpress.quant.search.space import SearchSpace

INT4 = QuantScheme(4, 32)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "COPIES_BYTES", 2**20)
    monkeypatch.setattr(layer_times, "ROUNDS", 1)
    monkeypatch.setattr(layer_times, "SECONDS", 0.002)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_shape_is_timed_once_in_milliseconds(dtype: torch.dtype) -> None:
    done: list[tuple[int, int, str]] = []
    shapes = [(64, 32, INT4), (64, 32, None), (1024, 2048, QuantScheme(3, 128))]
    times = time_layers(shapes, dtype, lambda *call: done.append(call))
    assert list(times) == shapes and done[-1] == (3, 3, "1024 x 2048")
    assert all(1e-4 < milliseconds < 1e3 for milliseconds in times.values())


def test_a_token_passes_decoder_and_head_and_some_experts() -> None:
    space = SearchSpace.of(make_tiny_config("qwen3_vl_moe", tied=False))
    shapes = layer_shapes(space)
    assert len(shapes) == len(set(shapes))
    table = latency_table(space, dict.fromkeys(shapes, 1.0))
    config = space.prepared
    expected = {"decoder": 0.0, "head": 0.0, "tower": 0.0, "embedding": 0.0}
    for spec in family_of(config).targets(config):
        if spec.part in ("decoder", "head"):
            expected[spec.part] += spec.token_share
    actual = dict.fromkeys(expected, 0.0)
    for group, times in zip(space.groups, table, strict=True):
        assert len(set(times)) == 1
        actual[group.part] += times[0]
    assert actual == pytest.approx(expected)
    # Two of six experts, with three layers each, next to q, k, v and o.
    assert expected["decoder"] == pytest.approx(4 * (4 + 2 * 3))
