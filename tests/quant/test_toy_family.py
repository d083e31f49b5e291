"""A family defined outside of the package, from its plan to an answer of the saved checkpoint."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from blockwise_jobs import GPTQ, RTN, SMOOTH, contents, finish, job
from tiny_models import prompts, write_small_checkpoint
from toy_family import registered, toy_config, toy_model

from vlpress.model.config import ModelConfig
from vlpress.model.families import (
    BlockLinear,
    Checkpoints,
    Family,
    LinearSpec,
    NormBinding,
    PaddedWidth,
    PairBinding,
    Stage,
)
from vlpress.model.generation import generate
from vlpress.model.loading import load_model
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.loading import load_quantized
from vlpress.quant.checkpoint.verify import first_tokens
from vlpress.quant.driver.pipeline import make_plan, quantize_, save_quantized
from vlpress.quant.plan.time_estimate import Probe, estimate_time
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.targets import quantized_layers

EVERYTHING = {"targets": ["visual.*", "model.layers.*", "lm_head"]}
STEPS: dict[str, list[dict[str, Any]]] = {
    "solved": [GPTQ | EVERYTHING],
    "against the float model": [GPTQ | {"method": "gptaq"} | EVERYTHING],
    "smoothed": [
        SMOOTH | {"alpha": 0.5, "targets": ["visual.*", "model.layers.*"]},
        RTN | {"activations": "static"} | EVERYTHING,
    ],
    "scaled": [{"method": "awq", "points": 4, "targets": ["visual.more.*"]}, RTN | EVERYTHING],
}


@pytest.fixture(autouse=True)
def toy() -> Iterator[None]:
    with registered():
        yield


def source_of(tmp_path: Path) -> Path:
    model = toy_model(dtype=torch.bfloat16, tied=False)
    return write_small_checkpoint(tmp_path / "source", model)


def answers(model: QwenVL) -> list[tuple[int, ...]]:
    samples = prompts(model.config)
    return [a.token_ids for a in generate(model, samples, max_new_tokens=4, stop_ids=())]


def test_every_layer_has_a_row_in_the_order_of_computation(tmp_path: Path) -> None:
    config = ModelConfig.from_folder(source_of(tmp_path))
    plan = make_plan(config, Recipe.from_dict({"name": "test", "step": STEPS["solved"]}))
    names = [row.name for row in plan.rows]
    first, merger = names.index("visual.more.0.mlp.0"), names.index("visual.merger.mlp.0")
    assert names.index("visual.blocks.1.mlp.down_proj") < first < merger
    assert names[-1] == "lm_head"
    assert {row.name for row in plan.tower} == {n for n in names if n.startswith("visual.")}


@pytest.mark.parametrize("name", ["solved", "against the float model"])
def test_from_plan_to_answer(tmp_path: Path, name: str) -> None:
    source = source_of(tmp_path)
    samples = prompts(ModelConfig.from_folder(source))
    streaming = job(source, STEPS[name], samples)
    written = finish(streaming, tmp_path / "work", tmp_path / "out")
    model = load_model(source, device="cpu")
    save_quantized(model, quantize_(model, streaming.recipe, samples), source, tmp_path / "other")
    assert written == contents(tmp_path / "other")
    assert "visual.more.1.mlp.2" in quantized_layers(model)
    loaded = load_quantized(tmp_path / "out", device="cpu")
    assert list(loaded.encode(samples[1].visuals)[0]) == ["hidden", "deepstack.0", "deepstack.1"]
    expected = answers(loaded)
    assert expected == answers(model)
    for sample, answer in zip(samples[:2], expected, strict=False):
        assert tuple(first_tokens(tmp_path / "out", sample, 4, device="cpu")) == answer


TABLES = (
    Family,
    Stage,
    Checkpoints,
    BlockLinear,
    NormBinding,
    PairBinding,
    PaddedWidth,
    LinearSpec,
)


def test_every_field_of_the_tables_has_a_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processor: Processor
) -> None:
    """Nothing in a table may be ignored, so a run from plan to answer must read every field."""
    seen: set[tuple[str, str]] = set()

    def record(self: object, name: str) -> Any:
        if (field := (type(self).__name__, name)) not in seen:
            code = sys._getframe(1).f_code
            # Comparing fields with each other or with the modules is no use of them.
            checks = code.co_filename.endswith("family_check.py") or code.co_name == "__post_init__"
            if not checks and code.co_filename != "<string>":  # methods that dataclasses generate
                seen.add(field)
        return object.__getattribute__(self, name)

    for table in TABLES:
        monkeypatch.setattr(table, "__getattribute__", record)
    for name in ("smoothed", "scaled"):
        test_from_plan_to_answer(tmp_path / name, name)
    Processor(toy_config(), processor.tokenizer)
    plan = make_plan(
        toy_config(tied=False), Recipe.from_dict({"name": "test", "step": STEPS["solved"]})
    )
    assert min(estimate_time(plan, Probe(*[1.0] * 6))) > 0
    fields = {(table.__name__, f.name) for table in TABLES for f in dataclasses.fields(table)}
    assert fields - seen == {("Family", "name")}  # the key of `FAMILIES`
