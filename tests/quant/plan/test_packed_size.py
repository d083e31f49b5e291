"""The plan's estimate of a packed checkpoint, compared with packed checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import small_config, small_model, write_small_checkpoint

import vlpress
from vlpress.model.checkpoint import CheckpointReader
from vlpress.model.config import ModelConfig
from vlpress.model.loading import resolve_model
from vlpress.model.packed.estimate import coded_share
from vlpress.quant.plan.packed_size import packed_parts
from vlpress.quant.plan.plan import Plan, make_plan
from vlpress.quant.recipe.recipe import Recipe


def planned(folder: Path, recipe: Recipe) -> tuple[Plan, dict[str, int]]:
    plan = make_plan(ModelConfig.from_folder(folder), recipe, dtype=torch.bfloat16)
    return plan, packed_parts(plan, CheckpointReader(folder), torch.bfloat16)


def test_shares_of_known_streams() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (64, 1024), dtype=torch.uint8, generator=generator)
    assert coded_share({}) == 1
    assert coded_share({"empty": noise[:0]}) == 1
    assert coded_share({"noise": noise}) == 1
    halves = coded_share({"noise": noise, "zeros": torch.zeros_like(noise)})
    assert halves == pytest.approx(0.5, abs=0.02)
    # Sixteen equally likely symbols: four bits of eight.
    assert coded_share({"digits": noise % 16}) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("recipe", ["w4a16-rtn", "fp8-rtn"])
def test_estimate_is_near_the_packed_checkpoint(recipe: str, tmp_path: Path) -> None:
    _, parts = planned(resolve_model("tiny"), Recipe.resolve(recipe))
    vlpress.quantize("tiny", recipe=recipe, out=tmp_path / "made", progress=False)
    vlpress.pack(tmp_path / "made", out=tmp_path / "packed", progress=False)
    found = sum(path.stat().st_size for path in (tmp_path / "packed").glob("*.vlz"))
    assert sum(parts.values()) == pytest.approx(found, rel=0.02)


def test_zeros_of_a_mask_make_the_estimate_smaller(tmp_path: Path) -> None:
    step = '[[step]]\nmethod = "rtn"\nbits = 4\n'
    sizes = []
    for name, mask in (("dense", ""), ("masked", 'keep = 0.5\nscore = "magnitude"\n')):
        file = tmp_path / f"{name}.toml"
        file.write_text(step + mask)
        _, parts = planned(resolve_model("tiny"), Recipe.resolve(file))
        sizes.append(parts["decoder"])
    made, packed = tmp_path / "made", tmp_path / "packed"
    vlpress.quantize("tiny", recipe=str(file), out=made, progress=False)
    vlpress.pack(made, out=packed, progress=False)
    total = sum(path.stat().st_size for path in packed.glob("*.vlz"))
    assert sum(parts.values()) == pytest.approx(total, rel=0.02)
    assert 0.7 < sizes[1] / sizes[0] < 0.85


def test_tied_head_of_its_own_is_sampled_from_the_embedding() -> None:
    plan, parts = planned(resolve_model("tiny"), Recipe.resolve("w4a16-all"))
    assert plan.untied
    assert 0 < parts["head"] < plan.candidate_parts["head"]


def test_experts_in_one_tensor_are_sampled_from_other_layers(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_small_checkpoint(folder, small_model(small_config("qwen3_vl_moe"), dtype=torch.bfloat16))
    step = {"method": "rtn", "bits": 4, "group_size": 32}
    plan, parts = planned(folder, Recipe.from_dict({"name": "test", "step": [step]}))
    assert 0.5 < parts["decoder"] / plan.candidate_parts["decoder"] < 1
