from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlpress import openblas
from vlpress.openblas import KERNELS, NEEDED, WAITING, tune


def tuned(monkeypatch: pytest.MonkeyPatch, processor: Path, **given: str) -> dict[str, str | None]:
    """What stands in the environment behind `tune`."""
    monkeypatch.setattr(openblas, "PROCESSOR", processor)
    for name in (KERNELS, WAITING):
        monkeypatch.setenv(name, "")  # so that what is set is undone
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    tune()
    return {name: os.environ.get(name) for name in (KERNELS, WAITING)}


def cpuinfo(folder: Path, words: set[str]) -> Path:
    path = folder / "cpuinfo"
    path.write_text("flags\t\t: fpu " + " ".join(sorted(words)) + " vme\n")
    return path


def test_amds_avx512_gets_kernels_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuned(monkeypatch, cpuinfo(tmp_path, NEEDED))
    assert found == {KERNELS: "SkylakeX", WAITING: "10"}


@pytest.mark.parametrize("missing", sorted(NEEDED))
def test_other_processors_are_left_to_openblas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    assert tuned(monkeypatch, cpuinfo(tmp_path, NEEDED - {missing}))[KERNELS] is None


def test_a_machine_that_tells_nothing_is_left_to_openblas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tuned(monkeypatch, tmp_path / "missing") == {KERNELS: None, WAITING: "10"}


def test_what_the_user_has_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {KERNELS: "Zen", WAITING: "20"}
    assert tuned(monkeypatch, cpuinfo(tmp_path, NEEDED), **given) == given


def test_it_is_set_before_anything_loads_scipy() -> None:
    script = (
        "import os, sys, vlpress; assert 'scipy' not in sys.modules; "
        f"print(os.environ['{WAITING}'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != WAITING}
    found = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout == "10\n"
