"""The run verb: interruption by a signal and resume."""

from __future__ import annotations

import json
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
from processes import stop_when
from typer.testing import CliRunner

from vlpress.cli import main
from vlpress.cli.exit_codes import RESUME

BENCH = "builtin-ocrbench"
LIMIT = 5
NAMES = ("base", "candidate")


def answers(out: Path, name: str) -> list[bytes]:
    path = out / "eval" / name / BENCH / "predictions.jsonl"
    return path.read_bytes().splitlines()[1:] if path.is_file() else []


def has_answers(out: Path, name: str) -> bool:
    return len(answers(out, name)) >= 2


@pytest.mark.parametrize(
    "evaluations", [("base",), pytest.param(NAMES, marks=pytest.mark.slow)], ids=" and ".join
)
def test_killed_run_resumes_and_repeats_no_question(
    evaluations: tuple[str, ...], checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vlpress", "run", str(checkpoint), "-o", str(out)]
    command += ["--bench", BENCH, "--limit", str(LIMIT), "--batch-size", "1"]
    command += ["--recipe", "w4a16-rtn", "--noise", "0", "--device", "cpu", "--json"]
    command += ["--max-new-tokens", "16"]  # enough to be stopped between two answers

    killed = stop_when(command, signal.SIGKILL, partial(has_answers, out, "base"))
    assert killed.returncode == -signal.SIGKILL
    stored = {"base": answers(out, "base")}
    assert 2 <= len(stored["base"]) < LIMIT and not answers(out, "candidate")

    if "candidate" in evaluations:
        stopped = stop_when(command, signal.SIGTERM, partial(has_answers, out, "candidate"))
        assert stopped.returncode == 3
        assert f"interrupted; {RESUME}" in stopped.stderr
        stored["candidate"] = answers(out, "candidate")
        assert 2 <= len(stored["candidate"]) < LIMIT

    done = CliRunner().invoke(main.app, command[3:])
    assert done.exit_code == 0, done.stderr
    for name, first in stored.items():
        assert answers(out, name)[: len(first)] == first
    for name in NAMES:
        ids = [json.loads(line)["id"] for line in answers(out, name)]
        assert len(ids) == len(set(ids)) == LIMIT
    assert json.loads(done.stdout)["benchmarks"][BENCH]["n"] == LIMIT
