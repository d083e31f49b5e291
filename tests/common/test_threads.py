from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner

from vlpress.cli.main import app
from vlpress.common.threads import (
    DEFAULTS,
    GNU_SPINS,
    LLVM_BLOCKTIME,
    OPENBLAS_TIMEOUT,
    OPENMP_POLICY,
    use_threads,
)

FIRST = """
import os, sys, vlpress
assert not {"numpy", "scipy", "torch"} & set(sys.modules), "a threaded library is loaded already"
print([os.environ.get(name) for name in sys.argv[1:]])
"""


def variables_after_import(**given: str) -> list[str | None]:
    """The variables of `DEFAULTS` once vlpress is imported into an environment."""
    clean = {k: v for k, v in os.environ.items() if k not in (*DEFAULTS, OPENMP_POLICY)}
    command = [sys.executable, "-c", FIRST, *DEFAULTS]
    done = subprocess.run(command, env=clean | given, capture_output=True, text=True, check=True)
    shown: list[str | None] = eval(done.stdout)
    return shown


def test_waiting_is_bounded_before_any_threaded_library_is_loaded() -> None:
    assert variables_after_import() == list(DEFAULTS.values())


@pytest.mark.parametrize("name", list(DEFAULTS))
def test_a_value_of_the_user_is_kept(name: str) -> None:
    wanted = {**DEFAULTS, name: "77"}
    assert variables_after_import(**{name: "77"}) == list(wanted.values())


def test_a_wait_policy_of_the_user_replaces_the_bounds_of_openmp_only() -> None:
    found = dict(zip(DEFAULTS, variables_after_import(OMP_WAIT_POLICY="ACTIVE"), strict=True))
    assert found == {GNU_SPINS: None, LLVM_BLOCKTIME: None, OPENBLAS_TIMEOUT: "10"}


COUNTED = """
import sys, vlpress
from vlpress.threads import use_threads
import torch
if sys.argv[1] == "loaded":
    import scipy.linalg
use_threads(1)
import scipy.linalg
from threadpoolctl import threadpool_info
pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
print(torch.get_num_threads(), pools)
"""


@pytest.mark.parametrize("scipy", ["loaded", "not loaded"])
def test_a_number_of_threads_holds_for_torch_and_blas(scipy: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    command = [sys.executable, "-c", COUNTED, scipy]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    torch_threads, pools = done.stdout.strip().split(" ", 1)
    assert torch_threads == "1"
    assert pools != "[]" and set(eval(pools)) == {1}


@pytest.mark.parametrize("count", [0, -3])
def test_no_threads_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=str(count)):
        use_threads(count)


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    with threadpool_limits(user_api="blas"):
        yield
    torch.set_num_threads(before)


VERBS = {
    "run": ["nowhere", "-o", "OUT", "--bench", "builtin-mmbench"],
    "plan": ["nowhere"],
    "quantize": ["nowhere", "-o", "OUT"],
    "export": ["nowhere", "-o", "OUT", "--format", "gptq"],
    "eval": ["nowhere"],
    "generate": ["nowhere", "What?"],
    "bench": ["model", "--model", "nowhere"],
}


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_that_computes_takes_a_number_of_threads(verb: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    arguments = [str(tmp_path / "out") if word == "OUT" else word for word in VERBS[verb]]
    result = CliRunner().invoke(app, [verb, *arguments, "--threads", "3"])
    assert result.exit_code == 2  # there is no such model
    assert torch.get_num_threads() == 3
