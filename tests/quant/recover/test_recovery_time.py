"""Estimated times of recoveries, counted by hand for the small model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_models import small_config

import vlpress
from vlpress.model.config import ModelConfig
from vlpress.quant.config import CalibrationOptions, ModelSettings
from vlpress.quant.job import Job
from vlpress.quant.plan.plan import Plan, make_plan
from vlpress.quant.plan.time_estimate import Probe
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.recover import Recover
from vlpress.quant.recover.recovery_time import estimate_rounding, estimate_training
from vlpress.quant.resolve import Source

# Widths 64 and 128, 32 for k and v; the vision tower's 32, 96 and 36, its merger's 128 and 64.
# The tower's 36 becomes 128 where it is quantized.
LAYER = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128
TOWER, PADDED = (
    2 * 4 * (32 * 96 + 32 * 32 + 3 * 32 * width) + 128 * 128 + 128 * 64 for width in (36, 128)
)
STEP: dict[str, Any] = {"method": "gptq", "bits": 8, "group_size": -1}
ONLY_MAC32 = Probe(mac=0, mac32=1, hessian=0, column=0, solve_mac=0, search=0)


def plan(**step: Any) -> Plan:
    config = ModelConfig.from_dict(small_config())
    return make_plan(config, Recipe.from_dict({"step": [STEP | step]}))


def test_training_reads_teacher_and_student() -> None:
    options = Recover(params=("scales",), samples=8, held_out=0.25, epochs=2)
    # Held out at the start, then per epoch; a step reads the weights three times.
    passes = 1 + 0.25 + 2 * (0.75 * 3 + 0.25)
    expected = 10 * (2 * TOWER + passes * 2 * LAYER)
    assert estimate_training(plan(), options, [4, 6], 1.0) == expected
    answers = Recover(params=("scales",), samples=8, held_out=0.25, epochs=2, targets="answers")
    without = 10 * (TOWER + (passes - 1) * 2 * LAYER)
    assert estimate_training(plan(), answers, [4, 6], 1.0) == without


def test_rounding_reads_blocks_that_are_solved() -> None:
    options = Recover(params=("rounding",), steps=5, batch=4)
    # Seven samples are trained on, all of them probed; one is measured eleven times.
    passes = 3 * (5 * 4 + 7) + 11
    only_second = plan(targets=["model.layers.1.*"])
    assert estimate_rounding(only_second, options, [2] * 8, 1.0) == passes * 2 * LAYER
    all_parts = plan(targets=["model.layers.*", "visual.*"])
    assert estimate_rounding(all_parts, options, [2] * 8, 1.0) == passes * 2 * (2 * LAYER + PADDED)


@pytest.mark.parametrize("params", ['"scales"', '"rounding"'])
def test_a_job_counts_its_recovery(params: str, checkpoint: Path, tmp_path: Path) -> None:
    text = '[[step]]\nmethod = "rtn"\nbits = 3\ngroup_size = 32\n'
    source = Source.find(checkpoint, ModelSettings(device="cpu"))
    seconds = []
    for name, table in (("without", ""), ("with", f"\n[recover]\nparams = {params}\n")):
        (tmp_path / name).write_text(text + table)
        job = Job.prepare(source, str(tmp_path / name), CalibrationOptions(calib_samples=8))
        seconds.append(job.estimate_seconds(ONLY_MAC32))
    assert seconds[1] > seconds[0]


def test_a_plan_has_the_time_of_recovery(checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[[step]]\nmethod = "rtn"\nbits = 3\ngroup_size = 32\n[recover]\nparams = "scales"\n'
    )
    planned = vlpress.plan(checkpoint, recipe=str(recipe), device="cpu", progress=False)
    times, estimate = planned["time"], planned["estimate"]
    quantizing = times["solve_seconds"] + times["seconds_per_token"] * estimate["tokens"]
    assert estimate["recovery_seconds"] > 0
    assert estimate["seconds"] == quantizing + estimate["recovery_seconds"]
