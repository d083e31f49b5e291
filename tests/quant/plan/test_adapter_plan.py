"""Adapters in a plan: their bytes, and what has no place for one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tiny_models import small_config

from vlpress.model.config import ModelConfig
from vlpress.quant.plan.plan import Plan, make_plan
from vlpress.quant.recipe.recipe import Recipe

STEP: dict[str, Any] = {"method": "rtn", "bits": 4, "group_size": 32}
EMBEDDING = {"targets": ["embedding"], "group_size": 64}


def planned(*steps: dict[str, Any], family: str = "qwen2_5_vl", **top: Any) -> Plan:
    config = ModelConfig.from_dict(small_config(family))
    rule = Recipe.from_dict({"name": "mine", "step": [STEP | step for step in steps], **top})
    return make_plan(config, rule)


def test_bytes_include_the_adapter() -> None:
    plain, adapted = planned({}), planned({"adapter_rank": 4})
    sizes = {row.name: row.adapter_bytes for row in adapted.quantized}
    for before, after in zip(plain.quantized, adapted.quantized, strict=True):
        expected = 2 * 4 * (after.spec.in_features + after.spec.out_features)
        assert sizes[after.name] == expected == after.bytes_after - before.bytes_after
    added, weights = sum(sizes.values()), sum(row.spec.weights for row in plain.quantized)
    assert adapted.candidate_bytes == plain.candidate_bytes + added
    assert adapted.bits_per_weight == pytest.approx(plain.bits_per_weight + 8 * added / weights)
    assert plain.adapter is None and "adapter" not in plain.to_dict()
    described = adapted.to_dict()["adapter"]
    assert described == {
        "rank": 4,
        "kinds": ["svd"],
        "layers": len(sizes),
        "bytes": added,
        "bits_per_weight": 8 * added / weights,
    }
    assert json.loads(json.dumps(described)) == described
    assert "adapter of rank 4 by svd" in adapted.quantized[0].fate
    assert adapted.memory.solve >= plain.memory.solve


@pytest.mark.parametrize(
    ("steps", "family", "message"),
    [
        (
            [
                {"adapter_rank": 4, "targets": ["model.layers.0.*"]},
                {"adapter_rank": 8, "targets": ["model.layers.1.*"]},
            ],
            "qwen2_5_vl",
            "steps have adapter_rank 4 and 8; allowed: one rank for all steps",
        ),
        (
            [{"adapter_rank": 4, "targets": ["model.layers.*.mlp.experts.*"]}],
            "qwen3_vl_moe",
            "is an expert, and engines fuse the experts of a layer, beside which they load no",
        ),
        (
            [{}, {"adapter_rank": 4, **EMBEDDING}],
            "qwen2_5_vl",
            r"model.embed_tokens has adapter_rank, but its rows are looked up; allowed",
        ),
        (
            [{"adapter_rank": 40}],
            "qwen2_5_vl",
            r"adapter_rank is 40, and model.layers.0.self_attn.k_proj is 32 x 64; allowed: at most",
        ),
    ],
)
def test_what_has_no_place_for_one_is_refused(
    steps: list[dict[str, Any]], family: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        planned(*steps, family=family, tie=False)


def test_layers_beside_experts_may_have_one() -> None:
    steps = (
        {"adapter_rank": 4, "targets": ["model.layers.*.self_attn.*"]},
        {"targets": ["model.layers.*.mlp.experts.*"]},
    )
    adapter = planned(*steps, family="qwen3_vl_moe").adapter
    assert adapter is not None and adapter["layers"] == 12
