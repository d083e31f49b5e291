"""Damaged evaluations end in one line that names the file; no number comes out of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from eval_files import package_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from workbench import Workbench, lossy

from vlpress.eval import compare
from vlpress.model.processing.processor import Processor

FILES = (
    "run.json",
    "builtin-mmbench/items.jsonl",
    "builtin-mmbench/predictions.jsonl",
    "builtin-ocrbench/fidelity.jsonl",
    "builtin-ocrbench/predictions.jsonl",
)


@pytest.fixture(scope="module")
def runs(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        package_files(folder, patch)
        bench = Workbench(Processor.from_folder(checkpoint), folder)
        names = ("builtin-mmbench", "builtin-ocrbench")
        base = bench.run("base", names=names, is_reference=True)
        bench.run("cand", lossy("3", "1000241"), names=names, reference=base, seed=1)
        compare(base, folder / "cand", folder / "whole")
        yield folder


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(FILES), st.sampled_from(["base", "cand"]), st.data())
def test_damaged_bytes(runs: Path, name: str, side: str, data: st.DataObject) -> None:
    if not (path := runs / side / name).is_file():
        return  # only the candidate's fidelity is measured
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.integers(0, 40))
    damaged = whole[:place] + data.draw(st.binary(max_size=6)) + whole[place + cut :]
    path.write_bytes(damaged)
    out = runs / "report"
    shutil.rmtree(out, ignore_errors=True)
    try:
        report = compare(runs / "base", runs / "cand", out)
    except ValueError as error:
        assert "\n" not in str(error)
        assert not (out / "report.json").exists()
    else:
        # Only what changes nothing may pass, such as blanks between values.
        assert (out / "report.json").read_bytes() == (runs / "whole" / "report.json").read_bytes()
        assert report["benchmarks"]["builtin-mmbench"]["n_rows"] == 32
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "another", "line lost", "line twice"])
def test_damaged_as_a_whole(runs: Path, name: str, damage: str, tmp_path: Path) -> None:
    shutil.copytree(runs / "cand", tmp_path / "cand")
    path = tmp_path / "cand" / name
    lines = path.read_bytes().splitlines(keepends=True)
    match damage:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "another":
            other = runs / "base" / "builtin-ocrbench" / "predictions.jsonl"
            path.write_bytes(other.read_bytes())
        case "line lost":
            path.write_bytes(b"".join(lines[:-1]))
        case "line twice":
            path.write_bytes(b"".join([*lines, lines[-1]]))
    if damage == "missing" and name.endswith("fidelity.jsonl"):
        return  # as if that benchmark's had not been measured, which reports say
    if damage == "another" and name == "builtin-ocrbench/predictions.jsonl":
        return  # a sound file, of a model that says other things
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        compare(runs / "base", tmp_path / "cand", tmp_path / "report")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report").exists()
