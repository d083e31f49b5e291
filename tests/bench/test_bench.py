"""`vlpress bench`."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from vlpress.bench import kernel_speed, run, timing
from vlpress.cli import main
from vlpress.quant.kernels import library

NEEDS = pytest.mark.skipif(
    isinstance(library.find_kernels("portable"), str), reason="the kernels are not built"
)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """One short turn: these tests do not check how precise the times are."""
    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr(timing, "BUDGET", 0.01)
    monkeypatch.setattr(timing, "COPIES_BYTES", 2**20)


def call(*arguments: str) -> Any:
    return CliRunner().invoke(main.app, ["bench", *arguments])


@NEEDS
def test_kernels_as_table_and_json() -> None:
    size = ["kernels", "--size", "256x192", "--rows", "1"]
    table = call(*size)
    assert table.exit_code == 0
    assert "256 x 192" in table.stdout and "GB/s" in table.stdout
    report = json.loads(call(*size, "--json").stdout)
    assert {row["rows"] for row in report["rows"]} == {1}


@NEEDS
def test_model_as_table_and_json() -> None:
    arguments = ["model", "--prompt-tokens", "8", "--new-tokens", "2"]
    table = call(*arguments)
    assert table.exit_code == 0 and re.search(r"kernels: \w+ \(\d+\)", table.stdout)
    report = json.loads(call(*arguments, "--json").stdout)
    assert report["model"] == "tiny" and report["prompt_tokens"] == 8


def test_unsupported_arguments_are_errors() -> None:
    unknown = call("everything")
    assert unknown.exit_code == 2 and "allowed: kernels, model" in unknown.stderr
    if not torch.cuda.is_available():
        cuda = call("kernels", "--device", "cuda")
        assert cuda.exit_code == 2 and "cuda" in cuda.stderr and "use cpu" in cuda.stderr


@pytest.mark.parametrize(
    ("size", "message"),
    [("2048", r"'2048'.*such as 2048x11008"), ("100x64", r"'100x64'.*100 .*128")],
)
def test_sizes_are_checked(size: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run.bench_kernels([size])


def test_default_sizes_are_those_of_real_models() -> None:
    assert all(k % kernel_speed.GROUP == 0 for k, _ in kernel_speed.SHAPES)
    assert (2048, 11008) in kernel_speed.SHAPES and (18944, 3584) in kernel_speed.SHAPES
