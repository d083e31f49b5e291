"""Time and peak memory of child processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from common.processes import run_measured

MIB = 2**20

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def test_peak_is_that_of_the_child() -> None:
    memory = bytearray(b"1" * (300 * MIB))  # resident in this process, not in its children
    small = run_measured(python("import time; time.sleep(0.1)"))
    large = run_measured(python(f"m = b'1' * (200 * {MIB}); import time; del m; time.sleep(0.1)"))
    assert 0 < small.peak_bytes < 100 * MIB
    assert 200 * MIB < large.peak_bytes < len(memory)
    assert large.seconds > 0.1


def test_failure_ends_the_benchmark() -> None:
    with pytest.raises(SystemExit, match=r"python.* ended with 3"):
        run_measured(python("raise SystemExit(3)"))


def test_environment_and_folder(tmp_path: Path) -> None:
    write = python("import os; open('name', 'w').write(os.environ['NAME'])")
    run_measured(write, {"NAME": "value"}, tmp_path)
    assert (tmp_path / "name").read_text() == "value"
