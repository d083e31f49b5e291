"""Benchmark files in VLMEvalKit's TSV form, read line by line.

Values are kept as written. With the defaults of pandas, options like "None" or "NA" would silently
become missing values; here only the empty string is missing. An image cell contains base64, a
reference to the row with the image (at most 64 characters), or a Python list literal of base64
strings.
"""

from __future__ import annotations

import ast
import csv
import gzip
import hashlib
import io
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ....model.processing.media import decode_base64, read_image_bytes
from .image_store import VLMEVALKIT, ImageStore, StoredImage
from .rows import BenchmarkTable, Row, refuse_rows

REFERENCE_LENGTH = 64  # characters; longer cells are images, others refer to another row
_CELL_LIMIT = 2**31 - 1  # characters; images exceed the default of the csv module
_CHUNK = 1 << 20  # bytes read at a time


def read_table(
    path: str | Path,
    *,
    required: Sequence[str] = (),
    make_index: Callable[[Mapping[str, str]], str] | None = None,
) -> BenchmarkTable:
    """Read a benchmark TSV (`.tsv` or `.tsv.gz`) and resolve its image references.

    Args:
        path: the file; UTF-8, tab-separated, quoted as by the csv module, with a header row.
        required: columns that must exist, in addition to `index` and `image`.
        make_index: id of a row by its cells, for files whose `index` repeats; None: `index`.

    Returns:
        The rows; those whose image is missing or not base64 are among its faults.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not in this format, or a row is ragged or repeated.
    """
    path = Path(path)
    digest = hashlib.md5()
    with _open(path) as binary, large_cells():
        lines = _lines(binary, digest, path)
        header = next(lines, [])
        if missing := [c for c in ("index", "image", *required) if c not in header]:
            columns = ", ".join(header)[:200] or "nothing"
            raise ValueError(f"{path.name}: column {', '.join(missing)} missing; found {columns}")
        if repeated := [c for c, count in Counter(header).items() if count > 1]:
            raise ValueError(
                f"{path.name}: duplicate column {', '.join(repeated)} in the header; remove one"
            )
        records, images = _read_records(path, header, lines, make_index)
    if not records:
        raise ValueError(f"{path.name} holds no rows; a header and at least one row are needed")
    keys = Counter(record["index"] for record in records)
    refuse_rows(path, "repeat an index", [key for key, count in keys.items() if count > 1])
    numeric = all(re.fullmatch(r"-?\d{1,18}", key) for key in keys)
    rows, faults = [], {}
    for record in records:
        index = int(record["index"]) if numeric else record["index"]
        handles, fault = images.resolve(record["index"])
        if fault:
            faults[index] = fault
        values = {c: v for c, v in record.items() if v != "" and c != "image"}
        rows.append(Row(index, values, handles))
    return BenchmarkTable(path, digest.hexdigest(), tuple(header), tuple(rows), faults)


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open a file for its bytes, decompressed if its name ends in `.gz`."""
    if not path.is_file():
        raise FileNotFoundError(f"benchmark file {path} does not exist; give the path of a TSV")
    with path.open("rb") as file:
        if path.suffix != ".gz":
            yield file
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield unpacked  # type: ignore[misc]  # reads bytes like any file


@contextmanager
def large_cells() -> Iterator[None]:
    """Raise the cell limit of the csv module, which is global."""
    limit = csv.field_size_limit(_CELL_LIMIT)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _lines(binary: BinaryIO, digest: hashlib._Hash, path: Path) -> Iterator[list[str]]:
    """Yield the cells of every line that is not empty; feed the bytes to the digest."""
    text = io.TextIOWrapper(
        io.BufferedReader(_HashingReader(binary, digest), _CHUNK), encoding="utf-8-sig", newline=""
    )
    try:
        yield from (row for row in csv.reader(text, delimiter="\t", strict=True) if row)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 ({error.reason}); fetch it again") from error
    except csv.Error as error:
        raise ValueError(f"{path.name} is not a tab-separated file ({error})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path.name} does not decompress ({error}); fetch it again") from error


class _HashingReader(io.RawIOBase):
    """Raw stream that feeds all bytes read to a digest."""

    def __init__(self, source: BinaryIO, digest: hashlib._Hash) -> None:
        self._source, self._digest = source, digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._source.read(len(buffer))
        self._digest.update(data)
        buffer[: len(data)] = data
        return len(data)


class _RowImages:
    """Images of all rows; references are resolved once all rows are read."""

    def __init__(self) -> None:
        self._store = ImageStore(VLMEVALKIT)
        self._images: dict[str, tuple[StoredImage, ...]] = {}
        self._bad: set[str] = set()
        self._references: dict[str, str] = {}

    def add(self, index: str, cell: str) -> None:
        """Store the images of a row, or its reference."""
        if len(cell) <= REFERENCE_LENGTH:
            self._references[index] = cell
            return
        try:
            self._images[index] = tuple(map(self._store.add, _decode_cell(cell)))
        except ValueError:
            self._bad.add(index)

    def resolve(self, index: str) -> tuple[tuple[StoredImage, ...], str]:
        """Return the images of a row and its fault, empty if it has none."""
        target = self._references.get(index, index)
        if target in self._images:
            return self._images[target], ""
        if index in self._bad:
            return (), "its image is not base64"
        if target in self._bad:
            return (), f"it refers to row {target}, whose image is not base64"
        if not target:
            return (), "it has no image"
        return (), f"it refers to {target[:20]!r}, which is no row with an image"


def _read_records(
    path: Path,
    header: Sequence[str],
    lines: Iterator[list[str]],
    make_index: Callable[[Mapping[str, str]], str] | None,
) -> tuple[list[Mapping[str, str]], _RowImages]:
    """Read all rows; return their cells without the image column, and their images."""
    records: list[Mapping[str, str]] = []
    images = _RowImages()
    ragged = []
    for number, cells in enumerate(lines, start=2):
        if len(cells) != len(header):
            ragged.append(number)
            continue
        record = dict(zip(header, cells, strict=True))
        if make_index is not None:
            record["index"] = make_index(record)
        images.add(record["index"], record.pop("image"))
        records.append(record)
    refuse_rows(path, f"do not have the header's {len(header)} columns", ragged)
    return records, images


def _decode_cell(cell: str) -> list[bytes]:
    """Decode an image cell to encoded images.

    Raises:
        ValueError: the cell is neither base64 nor a list literal of base64 strings.
    """
    if not (cell.startswith("[") and cell.endswith("]")):
        return [_decode_base64(cell)]
    try:
        parts = ast.literal_eval(cell)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError("not a list literal") from error
    if not isinstance(parts, list) or not parts or not all(isinstance(p, str) for p in parts):
        raise ValueError("not a list of strings")
    return [_decode_base64(part) for part in parts]


def _decode_base64(text: str) -> bytes:
    """Decode base64 or a `data:` URL; never reads a path, which the format does not have."""
    return read_image_bytes(text) if text.startswith("data:") else decode_base64(text, "image")
