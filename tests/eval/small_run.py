"""One finished `vlpress run` of the small random model, which the test modules copy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from vlpress.cli import main

BENCH = "builtin-ocrbench"
QUESTIONS: dict[str, Any] = {"bench": BENCH, "limit": 6, "batch_size": 2}
WORDS = ["--bench", BENCH, "--limit", "6", "--batch-size", "2", "--device", "cpu"]
"""The same on the command line, with the device."""
CALIB = ["--calib-samples", "2"]
PRINTED = "stderr.txt"
"""File next to a run with what it printed on standard error."""


def options_for(checkpoint: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Options of `run` that repeat the run in its folder `out`."""
    options = {"model": checkpoint, "out": out, "calib_samples": 2, "device": "cpu"}
    return {**options, **QUESTIONS, **changes}


def make_run(checkpoint: Path, out: Path) -> None:
    """Run on the command line."""
    command = ["run", str(checkpoint), "-o", str(out), *WORDS, *CALIB]
    result = CliRunner().invoke(main.app, command)
    assert result.exit_code == 0, result.stderr
    assert "verdict: " in result.stdout and "WARNING: calibrated on built-in" in result.stderr
    (out.parent / PRINTED).write_text(result.stderr)


def copy_run(finished: Path, out: Path) -> Path:
    """Copy a run with what it printed."""
    shutil.copytree(finished, out)
    shutil.copy(finished.parent / PRINTED, out.parent)
    return out
