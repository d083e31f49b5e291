"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlpress.common.atomic import (
    PART,
    STAGING,
    atomic_folder,
    atomic_path,
    write_bytes,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("sync", [False, True])
def test_files_are_created_and_replaced(tmp_path: Path, sync: bool) -> None:
    for content in (b"first", b"second"):
        write_bytes(tmp_path / "x", content, sync=sync)
        assert (tmp_path / "x").read_bytes() == content
    assert names(tmp_path) == ["x"]


def test_text_with_lone_surrogates(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "ü \ud800\n")
    assert (tmp_path / "x").read_bytes() == "ü \\ud800\n".encode()


def test_json_keeps_the_order_of_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "x", {"b": 1, "a": ["ü"]})
    assert (tmp_path / "x").read_text() == '{\n  "b": 1,\n  "a": [\n    "ü"\n  ]\n}\n'


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x", b"old")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "x") as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    with pytest.raises(ValueError, match="x"):
        write_json(tmp_path / "x", {"a": float("nan")})
    assert names(tmp_path) == ["x"] and (tmp_path / "x").read_bytes() == b"old"


def test_a_leftover_of_a_killed_process_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / f"x{PART}").write_bytes(b"a longer leftover")
    write_bytes(tmp_path / "x", b"new")
    assert names(tmp_path) == ["x"] and (tmp_path / "x").read_bytes() == b"new"


@pytest.mark.parametrize("exclusive", [False, True])
def test_folders_appear_complete_with_the_rights_of_the_umask(
    tmp_path: Path, exclusive: bool
) -> None:
    out = tmp_path / "a" / "out"
    before = os.umask(0o027)
    try:
        with atomic_folder(out, exclusive=exclusive) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "x").write_text("x")
            assert not out.exists()
    finally:
        os.umask(before)
    assert (out / "sub" / "x").read_text() == "x"
    assert names(out.parent) == ["out"]
    assert out.stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_failure_leaves_the_old_folder(tmp_path: Path, exclusive: bool) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with (
        pytest.raises(RuntimeError),
        atomic_folder(tmp_path / "out", existing="replace", exclusive=exclusive) as folder,
    ):
        (folder / "half").touch()
        raise RuntimeError
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]


def test_existing_folders_are_refused_replaced_or_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def create(name: str, **options: str) -> None:
        with atomic_folder(out, **options) as folder:  # type: ignore[arg-type]
            (folder / name).touch()

    create("first")
    with pytest.raises(ValueError, match="out exists"):
        create("second")
    create("third", existing="replace")
    assert names(out) == ["third"]
    create("fourth", existing="keep")
    assert names(out) == ["third"] and names(tmp_path) == ["out"]
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file"), atomic_folder(tmp_path / "file"):
        pass


def test_an_exclusive_writer_removes_the_leftovers_of_a_killed_one(tmp_path: Path) -> None:
    leftover = tmp_path / STAGING.format("out")
    (leftover / "out").mkdir(parents=True)
    (leftover / "out" / "half").touch()
    with atomic_folder(tmp_path / "out", exclusive=True) as folder:
        (folder / "whole").touch()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["whole"]


def test_everything_is_flushed_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(str(tmp_path)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    with atomic_folder(tmp_path / "out", exclusive=True) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").touch()
    staged = f"/{STAGING.format('out')}/out"
    assert set(flushed[:-1]) == {staged, f"{staged}/sub", f"{staged}/sub/x"}
    assert flushed[-1] == ""
