"""The readers with damaged files: a short form of `make fuzz`."""

from __future__ import annotations

import json
from pathlib import Path

import fuzz
import pytest
from fuzz_json import damage_json
from fuzz_side_files import SIDE_FILES, side_files
from fuzz_template import damage_template
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SHORT = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PIECES = st.one_of(
    st.binary(max_size=4),
    st.sampled_from(
        [b"null", b"-1", b"1e999", b"{", b"]" * 9, b"\n", b"\t", b"\xff", b'"', b"\x00"]
    ),
)


@st.composite
def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    """A file with replaced passages, or truncated."""
    data = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(data)))
        end = draw(st.integers(begin, min(len(data), begin + 12)))
        data[begin:end] = draw(PIECES)
    return bytes(data[: draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))])


@pytest.mark.parametrize("name", list(fuzz.READERS))
def test_valid_file_is_read(tmp_path: Path, name: str) -> None:
    reader = fuzz.READERS[name]
    if name == "index":  # names a file that is not there
        with pytest.raises(FileNotFoundError):
            reader.read(_put(tmp_path, reader))
        return
    assert fuzz.attempt(reader, reader.seed(), tmp_path) == "read"


def _put(folder: Path, reader: fuzz.Reader) -> Path:
    (folder / reader.file).write_bytes(reader.seed())
    return folder / reader.file


@pytest.mark.parametrize("name", list(fuzz.READERS))
def test_damaged_file_is_read_or_gives_an_error_of_one_line(tmp_path: Path, name: str) -> None:
    reader = fuzz.READERS[name]
    sound = reader.seed()

    @settings(SHORT, max_examples=15 if name in SIDE_FILES else 40)
    @given(damaged(sound))
    def damage(data: bytes) -> None:
        fuzz.attempt(reader, data, tmp_path)

    damage()


@pytest.mark.parametrize("name", [name for name in SIDE_FILES if not name.endswith(".txt")])
def test_valid_change_is_read_or_gives_an_error_of_one_line(tmp_path: Path, name: str) -> None:
    reader = fuzz.READERS[name]
    sound = reader.seed()
    outcomes = set()
    for seed in range(1, 50):
        changed = fuzz.readable(name, sound, seed)
        if changed is not None:
            outcomes.add(fuzz.attempt(reader, changed, tmp_path))
    assert "refused" in outcomes


def test_damaged_json_is_json() -> None:
    sound = side_files()["preprocessor_config.json"]
    changed = [damage_json(sound, seed) for seed in range(50)]
    assert changed == [damage_json(sound, seed) for seed in range(50)]
    assert len({data for data in changed if data != sound}) > 40
    assert all(data is not None and json.loads(data) is not Ellipsis for data in changed)
    assert damage_json(b"{", 0) is None


def test_deeply_nested_json() -> None:
    sound = b'{"a": 1, "b": ' + b"[" * 800 + b"]" * 800 + b"}"
    changed = [damage_json(sound, seed) for seed in range(50)]
    assert any(data is None for data in changed) and any(data for data in changed)


def test_damaged_templates_are_text() -> None:
    sound = side_files()["chat_template.jinja"]
    changed = {damage_template(sound, seed).decode() for seed in range(50)}
    assert len(changed - {sound.decode()}) > 40
    assert changed == {damage_template(sound, seed).decode() for seed in range(50)}


def test_error_of_another_type_ends_the_run(tmp_path: Path) -> None:
    def fails(path: Path) -> object:
        raise TypeError(path.name)

    def babbles(path: Path) -> object:
        raise ValueError("two\nlines")

    with pytest.raises(TypeError):
        fuzz.attempt(fuzz.Reader("x", bytes, fails), b"", tmp_path)
    with pytest.raises(AssertionError):
        fuzz.attempt(fuzz.Reader("x", bytes, babbles), b"", tmp_path)


def test_own_functions_are_those_of_vlpress() -> None:
    functions = {function.__qualname__: function for function in fuzz.own_functions()}
    assert {"read_checkpoint_json", "ModelConfig.from_folder", "VisionConfig.head_dim"} <= set(
        functions
    )
    assert all(function.__module__.startswith("vlpress") for function in functions.values())
    assert "ModelConfig.__init__" not in functions  # generated
