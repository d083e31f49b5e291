"""Images and videos as records and messages name them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlpress.model.processing.media import (
    find_image,
    find_video,
    local_path,
    read_image_bytes,
    shorten,
)

DATA = bytes(range(250, 256)) * 20  # holds the characters that the alphabets write differently
ENCODED = base64.b64encode(DATA).decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "图片 夹/照片 #1?.png", "50%25.png", "rel/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(DATA)
    return tmp_path


@pytest.mark.parametrize(
    "value",
    [
        DATA,
        bytearray(DATA),
        memoryview(DATA),
        "a.png",
        Path("a.png"),
        "./rel/../a.png",
        "图片 夹/照片 #1?.png",
        "file:图片 夹/照片 #1?.png",
        "file://rel/b.png",
        "data:image/png;base64," + ENCODED,
        "data:;base64," + ENCODED,
        "DATA:image/png;base64," + base64.encodebytes(DATA).decode(),
        "data:image/png;base64," + ENCODED.replace("+", "%2B").replace("/", "%2F"),
        ENCODED,
        base64.encodebytes(DATA).decode(),
        base64.urlsafe_b64encode(DATA).decode(),
        ENCODED.rstrip("="),
        {"bytes": DATA, "path": "nowhere.png"},
        {"bytes": None, "path": "a.png"},
        {"path": None, "url": "a.png"},
        {"base64": ENCODED},
        {"image": "a.png"},
    ],
    ids=lambda value: (
        f"{type(value).__name__} {value}"[:40]
        if not isinstance(value, memoryview)
        else "memoryview"
    ),
)
def test_all_forms_give_the_same_bytes(value: Any, folder: Path) -> None:
    assert read_image_bytes(value, folder) == DATA


def test_file_urls(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        for url in (
            path.as_uri(),
            f"file://{path}",
            f"file:{path}",
            f"FILE://localhost{path}",
            path.as_uri().replace("file:///", "file:/"),  # as pathlib leaves it
        ):
            assert find_image(url) == path, url
    assert local_path("file:///a%20b.png") == Path("/a b.png")
    assert local_path("a%20b.png") == Path("a%20b.png")


def test_files_are_found_and_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_image("a.png", folder) == folder / "a.png"
    assert find_video("a.png", folder) == folder / "a.png"
    assert find_video({"path": "a.png", "url": None}, folder) == folder / "a.png"
    monkeypatch.chdir(folder)
    assert find_image("a.png") == Path("a.png")
    assert find_video("file://a.png") == Path("a.png")


@pytest.mark.parametrize("scheme", ["http", "https", "HTTPS", "s3", "gs", "hf", "oss", "ftp"])
@pytest.mark.parametrize("find", [find_image, find_video])
def test_nothing_is_fetched(find: Any, scheme: str) -> None:
    for url in (f"{scheme}://x.org/a.png", f"{scheme}:/x.org/a.png"):  # as pathlib leaves it
        with pytest.raises(ValueError, match="download"):
            find(url)


@pytest.mark.parametrize(
    "value",
    [
        "b.png",
        Path("b.png"),
        "file:///nowhere/b.png",
        "x" * 5000 + ".png",
        "a\0.png",
    ],
)
@pytest.mark.parametrize("find", [find_image, find_video])
def test_missing_files(find: Any, value: Any, folder: Path) -> None:
    with pytest.raises(FileNotFoundError) as refusal:
        find(value, folder)
    assert len(str(refusal.value)) < 400 and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        True,
        "",
        "  ",
        [],
        ["a.png"],
        {},
        {"bytes": None, "path": None},
        {"path": "a.png", "max_pixels": 784},
        {"path": "a.png", "url": "b.png"},
        {"path": {"path": "a.png"}},
        {5: "a.png"},
        "data:image/png;base64,@@@",
    ],
)
def test_other_values_are_refused(value: Any, folder: Path) -> None:
    with pytest.raises(ValueError):
        find_image(value, folder)


@pytest.mark.parametrize(
    "value", [None, DATA, 5, "", {}, {"bytes": DATA}, "data:video/mp4;base64,"]
)
def test_a_video_is_a_file(value: Any) -> None:
    with pytest.raises(ValueError, match=r"file://"):
        find_video(value)


@given(value=st.recursive(st.none() | st.text() | st.floats(), st.lists) | st.text(min_size=100))
def test_shortened_values_fit_a_line(value: Any) -> None:
    text = shorten(value)
    assert len(text) <= 80 and text.isprintable()


def test_a_file_elsewhere_is_taken_from_the_current_folder_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given, here = tmp_path / "given", tmp_path / "here"
    for folder in (given, here):
        folder.mkdir()
        (folder / "both.png").write_bytes(folder.name.encode())
    (here / "one.png").write_bytes(b"one")
    monkeypatch.chdir(here)
    assert read_image_bytes("both.png", given) == b"given"
    assert not caplog.records
    assert read_image_bytes("one.png", given) == read_image_bytes("./one.png", given) == b"one"
    assert [str(given) in record.getMessage() for record in caplog.records] == [True]
