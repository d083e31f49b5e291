"""Published benchmarks in their Hugging Face forms, read through `datasets` row by row.

A folder of parquet files (a dataset repository, or a part of one), a folder written by
`save_to_disk`, or a hub id, of which only the files of the wanted split are fetched. Columns become
those of VLMEvalKit's TSV. Pictures keep the bytes that the files hold; these may be other bytes
than the TSV's (OCRBench was encoded anew as JPEG), so scores of the two forms do not compare.
"""

from __future__ import annotations

import ast
import hashlib
import json
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....model.processing.media import read_image_bytes
from .image_store import VLMEVALKIT, Picture, PictureStore
from .table import Faults, Index, Row, Table, fail_rows

MISSING = "nan"  # how one form writes an empty cell
_PICTURES = 7  # image_1 to image_7
_DISCIPLINES = {
    "Art & Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health & Medicine": "Basic_Medical_Science Clinical_Medicine "
    "Diagnostics_and_Laboratory_Medicine Pharmacy Public_Health",
    "Humanities & Social Science": "History Literature Psychology Sociology",
    "Tech & Engineering": "Agriculture Architecture_and_Engineering Computer_Science Electronics "
    "Energy_and_Power Materials Mechanical_Engineering",
}
DISCIPLINE_OF = {
    subject: name for name, subjects in _DISCIPLINES.items() for subject in subjects.split()
}

Record = Mapping[str, Any]
Cells = tuple[Index, dict[str, Any], list[Any]]
"""Index, values (None: absent) and picture cells of a row."""


@dataclass(frozen=True)
class Form:
    """How a kind of benchmark is laid out on the hub."""

    split: str
    columns: tuple[str, ...]  # that tell the form
    convert: Callable[[Record, int], Cells]


def _mmbench(record: Record, number: int) -> Cells:
    kept = {k: v for k, v in record.items() if k not in ("image", "index")}
    values = {k: None if v == MISSING and k != "question" else v for k, v in kept.items()}
    return int(record["index"]), values, [record.get("image")]


def _ocrbench(record: Record, number: int) -> Cells:
    answers = record["answer"]
    values = {
        "question": record["question"],
        "answer": repr(list(answers)) if isinstance(answers, list | tuple) else answers,
        "category": record["question_type"],
    }
    return number, values, [record.get("image")]


def _mmmu(record: Record, number: int) -> Cells:
    name = str(record["id"])
    split, _, rest = name.partition("_")
    subject = rest.rpartition("_")[0]
    options = record["options"]
    options = ast.literal_eval(options) if isinstance(options, str) else options
    values = {
        "question": record["question"],
        "answer": record["answer"],
        "category": subject,
        "l2-category": DISCIPLINE_OF.get(subject),
        "split": split,
    }
    if record.get("question_type") != "open":
        if len(options) > len(string.ascii_uppercase):
            raise ValueError(f"{len(options)} options; at most {len(string.ascii_uppercase)}")
        values |= dict(zip(string.ascii_uppercase, options, strict=False))
    pictures = [record.get(f"image_{place + 1}") for place in range(_PICTURES)]
    return name, values, [cell for cell in pictures if cell is not None]


FORMS: Mapping[str, Form] = {
    "mmbench": Form("dev", ("index", "question", "answer", "image"), _mmbench),
    "ocrbench": Form("test", ("question", "question_type", "answer", "image"), _ocrbench),
    "mmmu": Form("validation", ("id", "question", "options", "answer", "image_1"), _mmmu),
}


def fetch(place: str, kind: str, config: str | None) -> Path:
    """Fetch the files of the wanted split from the hub; what is cached is not fetched again.

    Args:
        place: hub id, with `@revision` if it shall not be the newest.
        kind: of the benchmark.
        config: folder within the repository, where it has one per language.

    Raises:
        ValueError: it cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = place.partition("@")
    split = FORMS[kind].split
    pattern = f"*{config}/{split}-*.parquet" if config else f"*{split}-*.parquet"
    try:
        folder = snapshot_download(
            name, repo_type="dataset", revision=revision or None, allow_patterns=[pattern]
        )
    except Exception as error:  # huggingface_hub raises a dozen unrelated types
        line = (str(error).strip().splitlines() or [repr(error)])[0]
        raise ValueError(
            f"dataset {place} cannot be fetched ({line}); give the path of a local copy"
        ) from error
    return Path(folder)


def read_dataset(folder: Path, kind: str, config: str | None) -> Table:
    """Read a local folder of a published dataset.

    Args:
        folder: parquet files anywhere below, or what `save_to_disk` wrote.
        kind: mmbench, ocrbench or mmmu.
        config: folder to keep to, where there is one of this name.

    Raises:
        ValueError: no files of the wanted split, or other columns than the form's.
    """
    form = FORMS[kind]
    store, digest = PictureStore(VLMEVALKIT), hashlib.md5()
    rows: list[Row] = []
    faults: Faults = {}
    for number, record in enumerate(_records(folder, form, config)):
        if missing := [c for c in form.columns if c not in record]:
            raise ValueError(
                f"{folder.name}: column {', '.join(missing)} missing; found {', '.join(record)}"
            )
        row, fault = _row(record, number, form, store, folder)
        rows.append(row)
        if fault:
            faults[row.index] = fault
        digests = [picture.digest for picture in row.images]
        described = json.dumps([row.index, dict(row.values), digests], ensure_ascii=False)
        digest.update(described.encode("utf-8", "surrogatepass"))
    if not rows:
        raise ValueError(f"{folder.name} holds no rows of split {form.split}; fetch it again")
    indices = [row.index for row in rows]
    if len(set(indices)) < len(indices):
        fail_rows(folder, "repeat an index", sorted({i for i in indices if indices.count(i) > 1}))
    columns = tuple(dict.fromkeys(column for row in rows for column in row.values))
    return Table(folder, digest.hexdigest(), columns, tuple(rows), faults)


def _row(
    record: Record, number: int, form: Form, store: PictureStore, folder: Path
) -> tuple[Row, str]:
    try:
        index, values, cells = form.convert(record, number)
    except (ValueError, TypeError, SyntaxError, KeyError) as error:
        return Row(f"row {number}", {}, ()), f"it cannot be read ({error})"
    texts = {column: str(v) for column, v in values.items() if v is not None and v != ""}
    try:
        given = [cell for cell in cells if cell is not None]
        pictures: tuple[Picture, ...] = tuple(
            store.add(read_image_bytes(cell, folder)) for cell in given
        )
    except (ValueError, OSError) as error:
        return Row(index, texts, ()), f"its image cannot be read ({error})"
    return Row(index, texts, pictures), "" if pictures else "it has no image"


def _records(folder: Path, form: Form, config: str | None) -> Iterator[Record]:
    """All rows of the wanted split, pictures undecoded."""
    import datasets  # type: ignore[import-untyped]  # ships no annotations

    try:
        if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
            data = datasets.load_from_disk(str(folder))
            data = data[form.split] if isinstance(data, dict) else data
        else:
            files = [str(file) for file in _files(folder, form.split, config)]
            # The files are streamed as they are; otherwise a copy of all would be cached.
            data = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
        yield from _undecoded(data, datasets.Image)
    except Exception as error:  # datasets and pyarrow raise a dozen unrelated types
        raise ValueError(f"{folder.name} cannot be read: {_first_line(error)}") from error


def _undecoded(data: Any, image: Any) -> Iterable[Record]:
    features = data.features or {}
    for column, feature in features.items():
        if isinstance(feature, image):
            data = data.cast_column(column, image(decode=False))
    records: Iterable[Record] = data
    return records


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]


def _files(folder: Path, split: str, config: str | None) -> list[Path]:
    files = sorted(folder.rglob("*.parquet"))
    chosen = [f for f in files if f.stem == split or f.stem.startswith(f"{split}-")]
    in_config = [f for f in chosen if config in f.relative_to(folder).parts[:-1]]
    if not chosen:
        found = ", ".join(str(f.relative_to(folder)) for f in files[:3]) or "none at all"
        raise ValueError(f"no parquet file is named {split}-...; found {found}")
    return in_config or chosen
