"""Two commands never work in one folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vlpress.common.locking import sole_use

HOLD = """
import sys, pathlib
from vlpress.locking import sole_use
with sole_use(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(out)]
    found = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert found.stdout is not None and found.stdout.readline() == "held\n"
    return found


def test_a_folder_in_use_is_refused_until_it_is_free(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    other = holder(out)
    with pytest.raises(ValueError, match=r"new/out is in use by another vlpress; wait for it"):
        with sole_use(out):
            raise AssertionError("never reached")
    with sole_use(tmp_path / "new" / "elsewhere"):
        pass
    other.communicate("")
    with sole_use(out):
        assert [path.name for path in out.parent.iterdir()] == [".out.vlpress-lock"]
    assert list(out.parent.iterdir()) == []


def test_a_killed_command_holds_nothing(tmp_path: Path) -> None:
    other = holder(tmp_path / "out")
    other.kill()
    other.wait()
    with sole_use(tmp_path / "out"):
        pass


def test_errors_pass_and_free_the_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), sole_use(tmp_path / "out"):
        raise KeyboardInterrupt
    with sole_use(tmp_path / "out"):
        pass


def test_where_no_folder_can_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    message = r"output folder .*file/new/out cannot be made \(.*\); give another folder"
    with pytest.raises(ValueError, match=message), sole_use(tmp_path / "file" / "new" / "out"):
        raise AssertionError("never reached")
