"""Output of compiled libraries that is discarded."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import ctypes, os
from vlpress.common.quiet_stdout import quiet_stdout
library = ctypes.CDLL(None)
print("before")
library.puts(b"kept")
with quiet_stdout():
    print("inside")
    library.puts(b"discarded")
    os.write(1, b"raw")
print("after")
library.puts(b"kept too")
"""
CLOSED = "import os; os.close(1); from vlpress.common.quiet_stdout import quiet_stdout\n" + (
    "with quiet_stdout():\n    pass\nos.write(2, b'done')"
)


def test_only_output_inside_the_block_is_discarded() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    # The C library writes its buffer when the process ends.
    assert sorted(done.stdout.split("\n")) == ["", "after", "before", "kept", "kept too"]


def test_a_closed_output_is_left_alone() -> None:
    done = subprocess.run([sys.executable, "-c", CLOSED], capture_output=True, check=False)
    assert done.stderr.startswith(b"done")
