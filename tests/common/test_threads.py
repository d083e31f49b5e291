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

LIMITED = """
import os, sys
from vlpress.common.threads import limit_spinning
limit_spinning()
assert not {"numpy", "scipy", "torch"} & set(sys.modules), "a threaded library is loaded already"
print([os.environ.get(name) for name in sys.argv[1:]])
"""


def limited_variables(**given: str) -> list[str | None]:
    """The variables of `DEFAULTS` after `limit_spinning` in an environment."""
    clean = {k: v for k, v in os.environ.items() if k not in (*DEFAULTS, OPENMP_POLICY)}
    command = [sys.executable, "-c", LIMITED, *DEFAULTS]
    done = subprocess.run(command, env=clean | given, capture_output=True, text=True, check=True)
    shown: list[str | None] = eval(done.stdout)
    return shown


def test_spinning_is_limited_without_loading_a_threaded_library() -> None:
    assert limited_variables() == list(DEFAULTS.values())


@pytest.mark.parametrize("name", list(DEFAULTS))
def test_a_value_of_the_user_is_kept(name: str) -> None:
    expected = {**DEFAULTS, name: "77"}
    assert limited_variables(**{name: "77"}) == list(expected.values())


def test_a_wait_policy_of_the_user_replaces_the_bounds_of_openmp_only() -> None:
    variables = dict(zip(DEFAULTS, limited_variables(OMP_WAIT_POLICY="ACTIVE"), strict=True))
    assert variables == {GNU_SPINS: None, LLVM_BLOCKTIME: None, OPENBLAS_TIMEOUT: "10"}


def test_import_leaves_the_environment_as_it_is() -> None:
    code = "import os; before = dict(os.environ); import vlpress; assert dict(os.environ) == before"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_line_limits_spinning_before_a_verb_imports_torch() -> None:
    code = (
        "import os, sys\n"
        "from vlpress.cli import main\n"
        "assert 'torch' not in sys.modules\n"
        "main.app = lambda: print([os.environ.get(name) for name in sys.argv[1:]], flush=True)\n"
        "main.main()\n"
    )
    clean = {k: v for k, v in os.environ.items() if k not in (*DEFAULTS, OPENMP_POLICY)}
    command = [sys.executable, "-c", code, *DEFAULTS]
    done = subprocess.run(command, env=clean, capture_output=True, text=True)
    assert eval(done.stdout) == list(DEFAULTS.values())


COUNTED = """
import sys, vlpress
from vlpress.common.threads import use_threads
import torch
if sys.argv[1] == "loaded":
    import scipy.linalg
use_threads(1)
import scipy.linalg
from threadpoolctl import threadpool_info
pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
print(torch.get_num_threads(), pools)
"""


@pytest.mark.parametrize("scipy", ["loaded", pytest.param("not loaded", marks=pytest.mark.slow)])
def test_the_number_of_threads_applies_to_torch_and_blas(scipy: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    command = [sys.executable, "-c", COUNTED, scipy]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    torch_threads, pools = done.stdout.strip().split(" ", 1)
    assert torch_threads == "1"
    assert pools != "[]" and set(eval(pools)) == {1}


@pytest.mark.parametrize("count", [0, -3])
def test_a_number_below_one_is_refused(count: int) -> None:
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
def test_every_computing_verb_has_a_number_of_threads(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    # The verb itself finds out that there is no such model, after it has set the threads.
    monkeypatch.setattr("vlpress.cli.preflight.check_arguments", lambda _: None)
    arguments = [str(tmp_path / "out") if word == "OUT" else word for word in VERBS[verb]]
    result = CliRunner().invoke(app, [verb, *arguments, "--threads", "3"])
    assert result.exit_code == 2  # there is no such model
    assert torch.get_num_threads() == 3
