"""Benchmark files in VLMEvalKit's TSV form: rows, pictures, and what must hold for them.

Values are kept as written. Reading such a file with pandas' defaults turns options like "None"
or "NA" into missing values and shifts nothing visibly; here only the empty string is missing.
A picture cell holds base64, a reference to another row's picture (at most 64 characters), or a
Python list literal of base64 strings. Every violated expectation is an error that names rows,
because a row dropped in silence changes the denominator.
"""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import gzip
import hashlib
import io
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

REFERENCE_LENGTH = 64  # longer cells are pictures, shorter ones name the row that holds one
MAX_PIXELS = 1 << 27  # decoded size bound; the largest known benchmark picture has 35 million
_OPTION = re.compile(r"[A-Z]")
_NAMED_ROWS = 5  # rows named in an error


@dataclass(frozen=True)
class Row:
    """One line of a benchmark file."""

    index: int | str
    values: Mapping[str, str]  # column -> cell as written; empty cells are absent
    images: tuple[bytes, ...]  # encoded pictures in order of appearance

    def __getitem__(self, column: str) -> str:
        return self.values[column]

    def get(self, column: str, default: str = "") -> str:
        """Return a cell, or `default` where it is missing."""
        return self.values.get(column, default)

    @property
    def options(self) -> dict[str, str]:
        """The options that exist: capital-letter columns with a value, in letter order."""
        letters = sorted(column for column in self.values if _OPTION.fullmatch(column))
        return {letter: self.values[letter] for letter in letters}

    @property
    def l2_category(self) -> str:
        """The coarse category; one published form spells the column with a capital L."""
        return self.get("l2-category") or self.get("L2-category")


@dataclass(frozen=True)
class Table:
    """A benchmark file as read."""

    path: Path
    md5: str  # of the uncompressed bytes
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def read_table(path: str | Path, *, required: Sequence[str] = ()) -> Table:
    """Read a benchmark TSV (`.tsv` or `.tsv.gz`) and resolve its pictures.

    Args:
        path: the file; UTF-8, tab-separated, quoted as by the csv module, with a header row.
        required: columns that must exist, besides `index` and `image`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, a ragged or repeated row, or a picture reference that does
            not lead to a picture in one hop.
    """
    path = Path(path)
    raw = read_bytes(path)
    cells = _parse(raw, path)
    header = cells[0]
    if missing := [c for c in ("index", "image", *required) if c not in header]:
        raise ValueError(
            f"{path.name}: column {', '.join(missing)} missing; found {', '.join(header)}"
        )
    ragged = [n for n, row in enumerate(cells[1:], start=2) if len(row) != len(header)]
    fail_rows(path, f"do not have the header's {len(header)} columns", ragged)
    records = [dict(zip(header, row, strict=True)) for row in cells[1:]]
    keys = Counter(record["index"] for record in records)
    fail_rows(path, "repeat an index", [key for key, count in keys.items() if count > 1])
    images = _resolve_images(path, {r["index"]: r["image"] for r in records})
    numeric = all(re.fullmatch(r"-?\d+", key) for key in keys)
    rows = tuple(
        Row(
            index=int(r["index"]) if numeric else r["index"],
            values={c: v for c, v in r.items() if v != "" and c != "image"},
            images=images[r["index"]],
        )
        for r in records
    )
    return Table(path, hashlib.md5(raw).hexdigest(), tuple(header), rows)


def read_bytes(path: Path) -> bytes:
    """Read a file whole, uncompressed if its name ends in `.gz`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged compression.
    """
    if not path.is_file():
        raise FileNotFoundError(f"benchmark file {path} does not exist; give the path of a TSV")
    data = path.read_bytes()
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError) as error:
        raise ValueError(f"{path.name} does not decompress ({error}); fetch it again") from error


def _parse(raw: bytes, path: Path) -> list[list[str]]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name} is not UTF-8 ({error.reason} at byte {error.start})"
        ) from error
    # Pictures exceed the csv module's default cell limit of 131072 characters by far.
    limit = csv.field_size_limit(max(len(text), 1))
    try:
        cells = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True))
    except csv.Error as error:
        raise ValueError(f"{path.name} is not a tab-separated file ({error})") from error
    finally:
        csv.field_size_limit(limit)
    cells = [row for row in cells if row]
    if len(cells) < 2:
        raise ValueError(f"{path.name} holds no rows; a header and at least one row are needed")
    return cells


def _resolve_images(path: Path, cells: Mapping[str, str]) -> dict[str, tuple[bytes, ...]]:
    images: dict[str, tuple[bytes, ...]] = {}
    bad: list[str] = []
    for index, cell in cells.items():
        if len(cell) > REFERENCE_LENGTH:
            try:
                images[index] = _decode_cell(cell)
            except ValueError:
                bad.append(index)
    fail_rows(path, "hold a picture that is not base64", bad)
    lost = []
    for index, cell in cells.items():
        if len(cell) <= REFERENCE_LENGTH:
            if cell in images and len(cells[cell]) > REFERENCE_LENGTH:
                images[index] = images[cell]
            else:
                lost.append(f"{index} (refers to {cell!r})" if cell else f"{index} (empty)")
    fail_rows(path, "have no picture, nor the index of a row that has one", lost)
    return images


def _decode_cell(cell: str) -> tuple[bytes, ...]:
    if not (cell.startswith("[") and cell.endswith("]")):
        return (_decode_base64(cell),)
    try:
        parts = ast.literal_eval(cell)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError("not a list literal") from error
    if not isinstance(parts, list) or not parts or not all(isinstance(p, str) for p in parts):
        raise ValueError("not a list of strings")
    return tuple(_decode_base64(part) for part in parts)


def _decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error


def open_image(data: bytes) -> Image.Image:
    """Decode one picture to RGB (alpha dropped, no background put in), bounded in size.

    Raises:
        ValueError: does not decode, or has more than `MAX_PIXELS` pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(
                f"picture of {image.width} x {image.height} exceeds {MAX_PIXELS} pixels"
            )
        return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"picture does not decode: {error}") from error


def check_images(path: Path, rows: Iterable[Row]) -> None:
    """Decode every picture once.

    Raises:
        ValueError: pictures that do not decode, by row.
    """
    verdicts: dict[bytes, bool] = {}
    bad = []
    for row in rows:
        for data in row.images:
            key = hashlib.sha256(data).digest()
            if key not in verdicts:
                try:
                    open_image(data)
                    verdicts[key] = True
                except ValueError:
                    verdicts[key] = False
            if not verdicts[key]:
                bad.append(row.index)
    fail_rows(path, "hold a picture that does not decode", bad)


def check_answers(path: Path, rows: Iterable[Row], *, open_allowed: bool = False) -> None:
    """Demand that each answer is one of its row's options.

    Args:
        path: the file, for the message.
        rows: the rows to check.
        open_allowed: rows without any option carry a free answer.

    Raises:
        ValueError: rows without an answer, or whose answer is no option.
    """
    rows = list(rows)
    fail_rows(path, "have no answer", [r.index for r in rows if "answer" not in r.values])
    closed = [r for r in rows if r.options or not open_allowed]
    wrong = [r.index for r in closed if r["answer"] not in r.options]
    fail_rows(path, "have an answer that is none of their options", wrong)


def fail_rows(path: Path, what: str, rows: Sequence[object]) -> None:
    """Raise one line that says what is wrong with which rows; nothing for no rows.

    Raises:
        ValueError: `rows` is not empty.
    """
    if rows:
        named = ", ".join(str(r) for r in rows[:_NAMED_ROWS])
        more = f" and {len(rows) - _NAMED_ROWS} more" if len(rows) > _NAMED_ROWS else ""
        raise ValueError(f"{path.name}: rows {named}{more} {what}; fetch or repair the file")
