from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vlpress.openblas import WAITING

FIRST = f"""
import os, sys, vlpress
assert not {{"numpy", "scipy"}} & set(sys.modules), "OpenBLAS has been loaded before"
print(os.environ["{WAITING}"])
"""


@pytest.mark.parametrize(("given", "wanted"), [(None, "10"), ("20", "20")])
def test_waiting_is_set_before_openblas_is_loaded(given: str | None, wanted: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != WAITING}
    if given is not None:
        environment[WAITING] = given
    command = [sys.executable, "-c", FIRST]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == wanted
