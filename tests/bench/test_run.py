"""`vlpress bench`."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from typer.testing import CliRunner

from vlpress.bench import kernel_speed, run, timing
from vlpress.cli import main
from vlpress.quant.kernels import library

NEEDS = pytest.mark.skipif(
    isinstance(library.find_kernels("portable"), str), reason="the kernels are not built"
)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested here is not how steady the numbers are."""
    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr(timing, "BUDGET", 0.01)
    monkeypatch.setattr(timing, "COPIES_BYTES", 2**20)


def call(*arguments: str) -> Any:
    return CliRunner().invoke(main.app, ["bench", *arguments])


@NEEDS
def test_layers_as_table_and_json() -> None:
    size = ["kernels", "--size", "256x192", "--rows", "1"]
    shown = call(*size)
    assert shown.exit_code == 0
    assert "256 x 192" in shown.stdout and "GB/s" in shown.stdout
    found = json.loads(call(*size, "--json").stdout)
    assert {row["rows"] for row in found["rows"]} == {1}


@NEEDS
def test_a_model_as_table_and_json() -> None:
    short = ["model", "--prompt-tokens", "8", "--new-tokens", "2"]
    shown = call(*short)
    assert shown.exit_code == 0 and re.search(r"kernels: \w+ \(\d+\)", shown.stdout)
    found = json.loads(call(*short, "--json").stdout)
    assert found["model"] == "tiny" and found["prompt_tokens"] == 8


def test_what_cannot_be_measured_is_named() -> None:
    refused = call("everything")
    assert refused.exit_code == 2 and "allowed: kernels, model" in refused.stderr
    elsewhere = call("kernels", "--device", "cuda")
    assert elsewhere.exit_code == 2 and "timed on the CPU only so far" in elsewhere.stderr
    for size, message in {
        "2048": "give in_features x out_features, such as 2048x11008",
        "100x64": "100 is no multiple of 128",
    }.items():
        with pytest.raises(ValueError, match=message):
            run.bench_kernels([size])


def test_the_usual_sizes_are_those_of_real_models() -> None:
    assert all(k % kernel_speed.GROUP == 0 for k, _ in kernel_speed.SHAPES)
    assert (2048, 11008) in kernel_speed.SHAPES and (18944, 3584) in kernel_speed.SHAPES
