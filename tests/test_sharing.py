"""Distributed runs under torchrun: equal bytes, and the end of all processes when one dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
RUN = [sys.executable, "-m", "torch.distributed.run"]
GIVEN = ["--device", "cpu", "--json"]
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def start(count: int, *arguments: str) -> list[str]:
    vlpress = ["-m", "vlpress", *arguments, *GIVEN]
    if count == 1:
        return [sys.executable, *vlpress]
    return [*RUN, "--nproc-per-node", str(count), *vlpress]


def ended(command: list[str], code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ONE_THREAD)
    assert done.returncode == code, done.stderr
    return done


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def answers(out: Path) -> list[dict[str, Any]]:
    """Predictions without their durations."""
    lines = (out / "builtin-mmbench" / "predictions.jsonl").read_text().splitlines()
    timed = ("seconds", "seal")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def quantize(checkpoint: Path, out: Path) -> list[str]:
    return ["quantize", str(checkpoint), "-o", str(out), "--recipe", "w4a16-g32"]


def test_a_checkpoint_by_one_two_and_three(checkpoint: Path, tmp_path: Path) -> None:
    outs = [tmp_path / str(count) for count in (1, 2, 3)]
    for count, out in enumerate(outs, start=1):
        done = ended(start(count, *quantize(checkpoint, out)))
        assert json.loads(done.stdout)["checkpoint"] == str(out)
    assert contents(outs[0]) == contents(outs[1]) == contents(outs[2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "3"]


def test_an_evaluation_by_one_two_and_three(checkpoint: Path, tmp_path: Path) -> None:
    options = ["--bench", "builtin-mmbench", "--limit", "12", "--batch-size", "4"]
    outs = [tmp_path / str(count) for count in (1, 2, 3)]
    for count, out in enumerate(outs, start=1):
        done = ended(start(count, "eval", str(checkpoint), "-o", str(out), *options))
        assert json.loads(done.stdout)["benchmarks"]["builtin-mmbench"]["n"] == 12
    assert answers(outs[0]) == answers(outs[1]) == answers(outs[2])
    measured = ["--reference", str(outs[0])]
    for count, out in enumerate(outs[1:], start=2):
        ended(start(count, "eval", str(checkpoint), "-o", str(out), *options, *measured))
    stored = [(out / "builtin-mmbench" / "fidelity.jsonl").read_bytes() for out in outs[1:]]
    assert stored[0] == stored[1]


@pytest.mark.parametrize("victim", [0, 1])
def test_all_ranks_end_within_a_minute_of_the_death_of_one(
    checkpoint: Path, tmp_path: Path, victim: int
) -> None:
    out = tmp_path / "out"
    command = start(2, *quantize(checkpoint, out), "--calib-samples", "8")
    journal = tmp_path / ".out.vlpress-work" / "journal.jsonl"
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ONE_THREAD)
    while not (journal.is_file() and journal.read_bytes()):
        assert run.poll() is None
        time.sleep(0.01)
    children = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[victim]), signal.SIGKILL)
    killed = time.monotonic()
    _, stderr = run.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert run.returncode != 0 and not out.exists()
    assert "another process of this run ended" in stderr
    done = ended(command)
    assert f"resuming {out} from " in done.stderr
    ended(start(1, *quantize(checkpoint, tmp_path / "alone"), "--calib-samples", "8"))
    assert contents(out) == contents(tmp_path / "alone")


def test_verbs_that_cannot_be_distributed_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    shared = ONE_THREAD | {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"}
    for arguments, line in (
        (["plan", str(checkpoint)], "processes share the work of quantize and eval; start this"),
        (["eval", str(checkpoint)], "processes that share an evaluation need --out"),
    ):
        command = [sys.executable, "-m", "vlpress", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=shared)
        assert done.returncode == 2 and line in done.stderr
