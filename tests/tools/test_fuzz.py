"""The readers against damaged files: the short form of `make fuzz`."""

from __future__ import annotations

from pathlib import Path

import fuzz
import pytest
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
    """A file with some stretches replaced, or cut off."""
    data = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(data)))
        end = draw(st.integers(begin, min(len(data), begin + 12)))
        data[begin:end] = draw(PIECES)
    return bytes(data[: draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))])


@pytest.mark.parametrize("name", list(fuzz.READERS))
def test_a_sound_file_is_read(tmp_path: Path, name: str) -> None:
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
def test_a_damaged_file_is_read_or_refused_in_a_line(tmp_path: Path, name: str) -> None:
    reader = fuzz.READERS[name]
    sound = reader.seed()

    @SHORT
    @given(damaged(sound))
    def damage(data: bytes) -> None:
        fuzz.attempt(reader, data, tmp_path)

    damage()
