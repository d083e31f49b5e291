"""Loading the compiled kernels: a library of other sources is refused."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path

import pytest

from vlpress.quant.kernels import library

SOURCES = Path(library.__file__).parent / "cpu"


def test_digest_depends_on_names_and_contents(tmp_path: Path) -> None:
    assert library.sources_digest(tmp_path) is None
    assert library.sources_digest(tmp_path / "missing") is None
    (tmp_path / "a.cpp").write_text("int a;")
    first = library.sources_digest(tmp_path)
    (tmp_path / "notes.txt").write_text("not a source")
    assert library.sources_digest(tmp_path) == first
    (tmp_path / "a.cpp").rename(tmp_path / "b.cpp")
    renamed = library.sources_digest(tmp_path)
    (tmp_path / "b.cpp").write_text("int b;")
    assert len({first, renamed, library.sources_digest(tmp_path)}) == 3


@pytest.fixture
def loaded() -> object:
    found = library.load_library()
    if isinstance(found, str):
        pytest.skip(found)
    return found


def test_library_of_these_sources_is_accepted(loaded: object) -> None:
    digest = library.sources_digest(SOURCES)
    assert loaded.vlpress_sources().decode() == digest  # type: ignore[attr-defined]
    library.check_sources(loaded, SOURCES)  # type: ignore[arg-type]


def test_installed_package_without_sources_is_accepted(loaded: object, tmp_path: Path) -> None:
    library.check_sources(loaded, tmp_path)  # type: ignore[arg-type]


def test_library_of_other_sources_is_refused(loaded: object, tmp_path: Path) -> None:
    changed = tmp_path / "cpu"
    shutil.copytree(SOURCES, changed)
    with (changed / "layout.h").open("a") as file:
        file.write("// changed\n")
    with pytest.raises(OSError, match=r"pip install -e \.") as refused:
        library.check_sources(loaded, changed)  # type: ignore[arg-type]
    for digest in (library.sources_digest(SOURCES), library.sources_digest(changed)):
        assert str(digest)[:12] in str(refused.value)


def test_library_without_a_digest_is_refused() -> None:
    class Older:
        """A library from before there was a digest."""

    with pytest.raises(OSError, match="unknown"):
        library.check_sources(Older(), files("vlpress.quant.kernels") / "cpu")  # type: ignore[arg-type]
