"""Sources of calibration samples: JSONL files, text files and `datasets` datasets."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from ...common.near_misses import did_you_mean, near_paths
from ...common.text_files import decode_utf8, read_object
from .records import ExactFloat, plain_text, read_record
from .sample import Sample
from .selection import Source

logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def open_source(source: str | Path) -> Source[Sample]:
    """Open a source without reading samples.

    Args:
        source: a .jsonl or .txt file (cut into samples at blank lines); a folder written by
            `datasets` or readable by it; otherwise a dataset's hub id.

    Raises:
        FileNotFoundError: the source does not exist.
        ValueError: the source is of an unknown type, cannot be read, or is empty.
    """
    check_source(source)
    path = Path(source)
    kind = path.suffix.lower()
    if kind in (".jsonl", ".txt"):
        opened = _jsonl(path) if kind == ".jsonl" else _paragraphs(path)
    else:
        opened = _dataset(str(source))
    if opened.count == 0:
        raise ValueError(f"calibration source {source} has no samples")
    return opened


def check_source(source: str | Path) -> None:
    """Check the name of a source without opening it.

    Raises:
        FileNotFoundError: the source does not exist and is not a hub id.
        ValueError: it is a file of an unknown type.
    """
    path = Path(source)
    if path.suffix.lower() in (".jsonl", ".txt"):
        if not path.is_file():
            hint = did_you_mean(near_paths(path))
            raise FileNotFoundError(f"calibration file {path} does not exist{hint and f';{hint}'}")
    elif path.is_file():
        raise ValueError(
            f"calibration file {path}: unknown type {path.suffix!r}; use .jsonl or .txt, "
            "or a datasets folder"
        )
    elif not path.is_dir() and not HUB_ID.fullmatch(str(source)):
        raise FileNotFoundError(
            f"calibration source {source} does not exist;{did_you_mean(near_paths(path))} give a "
            ".jsonl or .txt file, a datasets folder or a hub id"
        )


def _text(path: Path) -> str:
    text = decode_utf8(path.read_bytes(), f"calibration file {path}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _jsonl(path: Path) -> Source[Sample]:
    lines = [
        (number, line)
        # Not splitlines: JSON strings may contain unescaped Unicode line separators.
        for number, line in enumerate(_text(path).split("\n"), start=1)
        if line.strip()
    ]

    def read(index: int) -> Sample:
        number, line = lines[index]
        record = read_object(line, parse_float=ExactFloat)
        return read_record(record, path.parent, f"{path.name}:{number}")

    return Source(str(path), len(lines), read, lambda index: f"{path}:{lines[index][0]}")


def _paragraphs(path: Path) -> Source[Sample]:
    parts = [part.strip() for part in re.split(r"\n\s*\n", _text(path)) if part.strip()]

    def read(index: int) -> Sample:
        return plain_text(parts[index], f"{path.name}#{index + 1}")

    return Source(str(path), len(parts), read, lambda index: f"{path}, paragraph {index + 1}")


def _dataset(source: str) -> Source[Sample]:
    import datasets  # type: ignore[import-untyped]  # ships no annotations

    folder = Path(source)
    saved = any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        data = datasets.load_from_disk(source) if saved else datasets.load_dataset(source)
    except Exception as error:  # datasets raises many unrelated types
        line = str(error).strip().splitlines()
        raise ValueError(
            f"calibration dataset {source} cannot be loaded: {line[0] if line else error!r}"
        ) from None
    if isinstance(data, dict):
        split = "train" if "train" in data else next(iter(data))
        logger.info("calibration dataset %s: split %s of %s", source, split, list(data))
        data = data[split]
    # The arrow format returns stored values, so that media are decoded by `model.processing` as in
    # other sources. Casting the features would make `datasets` write a second copy of the dataset.
    rows = data.with_format("arrow")

    def read(index: int) -> Sample:
        (record,) = rows[index].to_pylist()
        return read_record(record, folder, f"{folder.name}[{index}]")

    return Source(source, len(data), read, lambda index: f"{source}, row {index}")
