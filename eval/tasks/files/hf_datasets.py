"""Published benchmarks in their Hugging Face forms, read row by row through `datasets`.

The source is a folder of parquet files (a dataset repository or a part of one), a folder written
by `save_to_disk`, or a hub id, from which only the files of one split are fetched. Columns are
renamed to those of VLMEvalKit's TSV. Images keep the bytes of the files, which may differ from the
TSV's (OCRBench was re-encoded as JPEG), so scores of the two forms are not comparable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ....model.processing.media import read_image_bytes
from .hf_forms import FORMS, Form, Record
from .image_store import VLMEVALKIT, ImageStore
from .rows import BenchmarkTable, Faults, Row, refuse_rows


def fetch_dataset(repo: str, kind: str, config: str | None) -> Path:
    """Fetch the files of a benchmark's split from the hub into its cache.

    Args:
        repo: hub id; `@revision` selects another revision than the newest.
        kind: a key of `FORMS`.
        config: folder in the repository, for repositories with one folder per language.

    Raises:
        ValueError: the files cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = repo.partition("@")
    split = FORMS[kind].split
    pattern = f"*{config}/{split}-*.parquet" if config else f"*{split}-*.parquet"
    try:
        folder = snapshot_download(
            name, repo_type="dataset", revision=revision or None, allow_patterns=[pattern]
        )
    except Exception as error:  # huggingface_hub raises a dozen unrelated types
        line = (str(error).strip().splitlines() or [repr(error)])[0]
        raise ValueError(
            f"dataset {repo} cannot be fetched ({line}); give the path of a local copy"
        ) from error
    return Path(folder)


def read_dataset(folder: Path, kind: str, config: str | None) -> BenchmarkTable:
    """Read a local folder of a published dataset.

    Args:
        folder: parquet files at any depth, or a folder written by `save_to_disk`.
        kind: a key of `FORMS`.
        config: subfolder to read if it exists; None reads all.

    Raises:
        ValueError: the folder has no files of the split, or a column is missing.
    """
    form = FORMS[kind]
    store, digest = ImageStore(VLMEVALKIT), hashlib.md5()
    rows: list[Row] = []
    faults: Faults = {}
    for number, record in enumerate(_questions(folder, form, config)):
        row, fault = _row(record, number, form, store, folder)
        rows.append(row)
        if fault:
            faults[row.index] = fault
        digests = [image.digest for image in row.images]
        described = json.dumps([row.index, dict(row.values), digests], ensure_ascii=False)
        digest.update(described.encode("utf-8", "surrogatepass"))
    if not rows:
        raise ValueError(f"{folder.name} holds no rows of split {form.split}; fetch it again")
    indices = [row.index for row in rows]
    if len(set(indices)) < len(indices):
        refuse_rows(folder, "repeat an index", sorted({i for i in indices if indices.count(i) > 1}))
    columns = tuple(dict.fromkeys(column for row in rows for column in row.values))
    return BenchmarkTable(folder, digest.hexdigest(), columns, tuple(rows), faults)


def _questions(folder: Path, form: Form, config: str | None) -> Iterator[Record]:
    """Yield a record per question.

    Raises:
        ValueError: a column is missing.
    """
    for record in _records(folder, form, config):
        if missing := [c for c in form.columns if c not in record]:
            raise ValueError(
                f"{folder.name}: column {', '.join(missing)} missing; found {', '.join(record)}"
            )
        yield from form.expand(record)


def _row(
    record: Record, number: int, form: Form, store: ImageStore, folder: Path
) -> tuple[Row, str]:
    """Convert a record to a row; return its fault as well, empty if it has none."""
    try:
        index, values, cells = form.convert(record, number)
    except (ValueError, TypeError, SyntaxError, KeyError) as error:
        return Row(f"row {number}", {}, ()), f"it cannot be read ({error})"
    texts = {column: str(v) for column, v in values.items() if v is not None and v != ""}
    try:
        present = [cell for cell in cells if cell is not None]
        images = tuple(store.add(read_image_bytes(cell, folder)) for cell in present)
    except (ValueError, OSError) as error:
        return Row(index, texts, ()), f"its image cannot be read ({error})"
    return Row(index, texts, images), "" if images else "it has no image"


def _records(folder: Path, form: Form, config: str | None) -> Iterator[Record]:
    """Yield the rows of the split with undecoded images."""
    import datasets  # type: ignore[import-untyped]  # ships no annotations

    try:
        if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
            data = datasets.load_from_disk(str(folder))
            data = data[form.split] if isinstance(data, dict) else data
        else:
            files = [str(file) for file in _files(folder, form.split, config)]
            # Streaming avoids a copy of all files in the cache of `datasets`.
            data = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
        yield from _disable_decoding(data, datasets.Image)
    except Exception as error:  # datasets and pyarrow raise a dozen unrelated types
        raise ValueError(f"{folder.name} cannot be read: {_first_line(error)}") from error


def _disable_decoding(data: Any, image: Any) -> Iterable[Record]:
    features = data.features or {}
    for column, feature in features.items():
        if isinstance(feature, image):
            data = data.cast_column(column, image(decode=False))
    records: Iterable[Record] = data
    return records


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]


def _files(folder: Path, split: str, config: str | None) -> list[Path]:
    """List the parquet files of a split, those of the config if it has any."""
    files = sorted(folder.rglob("*.parquet"))
    chosen = [f for f in files if f.stem == split or f.stem.startswith(f"{split}-")]
    in_config = [f for f in chosen if config in f.relative_to(folder).parts[:-1]]
    if not chosen:
        names = ", ".join(str(f.relative_to(folder)) for f in files[:3]) or "none at all"
        raise ValueError(f"no parquet file is named {split}-...; found {names}")
    return in_config or chosen
