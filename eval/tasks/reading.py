"""Read the rows of a benchmark that are scored, with notes on what differs from the published file.

The notes are for the report.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from . import registry
from .files.hf_datasets import fetch_dataset, read_dataset
from .files.hf_forms import FORMS
from .files.jsonl import read_questions
from .files.rows import BenchmarkTable, Row
from .files.tsv import read_table
from .published import CONFIGS, Published
from .registry import TASK_KINDS, Benchmark, TaskKind, near_miss, where_to_get

SPLITS = ("dev", "validation", "test")


def read_benchmark(benchmark: Benchmark) -> tuple[BenchmarkTable, list[str]]:
    """Read the rows of a benchmark; return notes on its deviations from the published file."""
    if benchmark.form == "custom":
        return read_questions(benchmark.location), list(filter(None, [near_miss(benchmark)]))
    required = TASK_KINDS[benchmark.kind].required
    if benchmark.form == "packaged":
        table = read_table(benchmark.location, required=required)
        _check_packaged(table)
        return table, []
    assert benchmark.release is not None  # all other forms are of published benchmarks
    if benchmark.form == "tsv":
        make_index = TASK_KINDS[benchmark.kind].index
        table = read_table(benchmark.location, required=required, make_index=make_index)
        return table, _release_notes(benchmark.name, benchmark.release, table)
    return _read_dataset(benchmark, benchmark.release)


def _read_dataset(benchmark: Benchmark, release: Published) -> tuple[BenchmarkTable, list[str]]:
    """Read the Hugging Face form of a published benchmark, from a folder or the hub."""
    name = benchmark.name
    config = CONFIGS.get(name)
    if benchmark.kind not in FORMS or (benchmark.kind == "mmbench" and config is None):
        raise ValueError(f"{name} is published as a TSV only; {where_to_get(name)}")
    is_hub = benchmark.form == "hub"
    location = benchmark.location
    folder = fetch_dataset(location, benchmark.kind, config) if is_hub else Path(location)
    table = read_dataset(folder, benchmark.kind, config)
    origin = location if is_hub else "local files"
    notes = [
        f"read from the Hugging Face form ({origin}), whose pictures may be encoded otherwise than "
        "those of the TSV that published scores were taken with"
    ]
    return table, notes + _row_notes(name, release.scored or release.rows, table)


def _release_notes(name: str, release: Published, table: BenchmarkTable) -> list[str]:
    notes = []
    if table.md5 != release.md5:
        notes.append(f"md5 {table.md5} is not that of the published {name} ({release.md5})")
    return notes + _row_notes(name, release.rows, table)


def _row_notes(name: str, expected: int, table: BenchmarkTable) -> list[str]:
    if expected and len(table.rows) != expected:
        return [f"{len(table.rows)} rows, the published {name} has {expected}"]
    return []


def select_split(
    benchmark: Benchmark, table: BenchmarkTable, notes: list[str]
) -> tuple[list[Row], str | None]:
    """Return the rows of the scored split and its name; add a note if no row has it.

    Rows with an unknown split are included: they are broken.
    """
    split = benchmark.release.split if benchmark.release else None
    if split is None:
        return list(table.rows), None
    if any(row.get("split") == split for row in table.rows):
        others = set(SPLITS) - {split}
        return [row for row in table.rows if row.get("split") not in others], split
    notes.append(f"no row is marked {split}: all rows count")
    return list(table.rows), None


def leave_out(kind: TaskKind, rows: list[Row], notes: list[str]) -> list[Row]:
    """Return the rows that are scored; add a note on the others.

    Raises:
        ValueError: no row is scored.
    """
    if kind.left_out is None:
        return rows
    parts = Counter(part for part in map(kind.left_out, rows) if part)
    if not parts:
        return rows
    counts = ", ".join(f"{part} ({count})" for part, count in sorted(parts.items()))
    total = sum(parts.values())
    if total == len(rows):
        raise ValueError(f"all {total} rows are of parts that are not scored: {counts}")
    notes.append(
        f"{total} of {len(rows)} rows are left out, of parts whose metric is not offered: {counts}"
    )
    return [row for row in rows if not kind.left_out(row)]


def packaged_md5s() -> dict[str, str]:
    """Return the md5 of the uncompressed packaged files, by their names."""
    path = registry.DATA / "md5s.json"
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def _check_packaged(table: BenchmarkTable) -> None:
    expected = packaged_md5s().get(table.path.name)
    if table.md5 != expected:
        raise ValueError(
            f"packaged {table.path.name} has md5 {table.md5}, not {expected}; reinstall vlpress"
        )
