"""The quantize verb: interruption, resume and refusal of other work."""

from __future__ import annotations

import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from processes import stop_when
from typer.testing import CliRunner, Result

from vlpress.cli import main
from vlpress.cli.exit_codes import RESUME
from vlpress.common.output_dir import sole_use
from vlpress.quant.driver.journal import Journal

MORE = ["--calib-samples", "2", "--device", "cpu", "--json"]


def command(checkpoint: Path, out: Path, *more: str, recipe: str = "w4a16-g32") -> list[str]:
    base = [sys.executable, "-m", "vlpress", "quantize", str(checkpoint), "-o", str(out)]
    return [*base, "--recipe", recipe, *MORE, *more]


def finish(arguments: list[str]) -> Result:
    """Run the same command to its end, in this process."""
    return CliRunner().invoke(main.app, arguments[3:])


def journal(out: Path) -> Path:
    return out.with_name(f".{out.name}.vlpress-work") / "journal.jsonl"


def lines(out: Path) -> int:
    return journal(out).read_bytes().count(b"\n") if journal(out).is_file() else 0


def reached(out: Path, count: int) -> bool:
    return lines(out) >= count


def interrupt_at(count: int, arguments: list[str], out: Path) -> None:
    """Run a command in this process and interrupt it once its journal has `count` lines."""

    class Interrupted(Journal):
        def add(self, *block: Any) -> None:
            super().add(*block)
            if len(self.records) == count:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlpress.quant.job.Journal", Interrupted)
        assert finish(arguments).exit_code == 3
    assert not out.exists() and lines(out) == count


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert finish(command(checkpoint, out)).exit_code == 0
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    return out


@pytest.mark.parametrize("counts", [(2,), pytest.param((1, 3), marks=pytest.mark.slow)])
def test_a_killed_command_resumes_and_ends_in_the_same_bytes(
    counts: tuple[int, ...], checkpoint: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for count in counts:
        ready = partial(reached, out, count)
        killed = stop_when(command(checkpoint, out), signal.SIGKILL, ready)
        assert killed.returncode == -signal.SIGKILL
        assert not out.exists() and lines(out) >= count
    done = finish(command(checkpoint, out))
    assert done.exit_code == 0, done.stderr
    assert f"resuming {out} from " in done.stderr
    assert contents(out) == contents(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupted_command_reports_that_it_resumes(
    checkpoint: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stopped = stop_when(command(checkpoint, out), signal.SIGINT, lambda: lines(out) >= 1)
    assert stopped.returncode == 3
    assert stopped.stderr.splitlines()[-1] == f"interrupted; {RESUME}"
    assert finish(command(checkpoint, out)).exit_code == 0
    assert contents(out) == contents(whole)


def test_other_work_is_not_resumed(checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    other = command(checkpoint, out, recipe="w8a16-rtn")
    interrupt_at(1, command(checkpoint, out), out)
    before = journal(out).read_bytes()
    refused = finish(other)
    assert refused.exit_code == 2
    assert "holds other work (" in refused.stderr and "recipe" in refused.stderr
    assert "--overwrite" in refused.stderr and refused.stderr.count("\n") == 1
    assert journal(out).read_bytes() == before
    samples = finish(command(checkpoint, out, "--calib-samples", "3"))
    assert samples.exit_code == 2 and "calibration" in samples.stderr
    assert finish([*other, "--overwrite"]).exit_code == 0
    assert contents(out).keys() == contents(whole).keys()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupted_command_can_restart(checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt_at(2, command(checkpoint, out), out)
    done = finish(command(checkpoint, out, "--fresh"))
    assert done.exit_code == 0 and "resuming" not in done.stderr
    assert contents(out) == contents(whole)


def test_a_folder_in_use_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with sole_use(out):
        second = finish(command(checkpoint, out))
    assert second.exit_code == 2
    assert second.stderr.startswith(f"vlpress: error: output folder {out} is in use by another")
    assert list(tmp_path.iterdir()) == []
