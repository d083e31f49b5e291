"""The benchmarks, opened by name: packaged drawings, published files, one's own questions.

`open_task("builtin-mmbench")` reads a packaged file, `open_task("MMBench_DEV_EN=PATH")` a copy of
the published one, `open_task("mine=questions.jsonl")` one's own. Nothing is fetched but a dataset
that is given by its hub id.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import Image

from . import registry
from .broken import mark_broken, text_faults
from .extract import DEFAULT_PROFILE, rule_profile
from .files.hf_datasets import fetch, read_dataset
from .files.image_store import Picture
from .files.jsonl import read_jsonl
from .files.table import Row, Table, picture_faults
from .files.tsv import read_table
from .prompts import DEFAULT, prompt_hash, prompt_style
from .registry import BUILTIN, KINDS, Found, Kind, Published, find
from .resolution import DEFAULT as MODEL_PIXELS
from .resolution import bounds_of
from .task import Fields, Item, Task, by_unit, is_broken, sample_units, with_fault

MAX_NEW_TOKENS = 2048  # the cap the published scores were taken with
BUILTIN_MAX_NEW_TOKENS = 64  # the longest gold answer of the drawings is far below
SPLITS = ("dev", "validation", "test")
BLANK_GRAY = (127, 127, 127)
_CONFIGS = {"MMBench_DEV_EN": "en", "MMBench_DEV_CN": "cn"}  # folders of the hub's form

__all__ = ["BUILTIN", "KINDS", "find", "open_task"]


def open_task(
    spec: str,
    *,
    limit: int | None = None,
    prompt_style: str | None = None,
    profile: str = DEFAULT_PROFILE,
    blank: bool = False,
    seed: int = 0,
    max_new_tokens: int | None = None,
    pixels: str = MODEL_PIXELS,
    data_root: str | Path | None = None,
) -> Task:
    """Open a benchmark; rows that no model can be asked are broken, see `broken`.

    Args:
        spec: a name or `NAME=PLACE`, see `catalogue`.
        limit: keep this many questions (a circular group is one), spread over the categories.
        prompt_style: a name of `prompts.STYLES`; None is the dataset's own layout. Pass
            `default_prompt_style(config.family)` for the layout a family was published with.
        profile: extraction rules, a name of `extract.PROFILES`.
        blank: replace every picture by a gray one of its size, to see what guessing scores.
        seed: of the choice that `limit` makes.
        max_new_tokens: cap on an answer; None is 2048, or 64 for the packaged files.
        pixels: how large pictures are shown, a name of `pixels.BUDGETS`.
        data_root: folder that holds published files under their names.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: unknown name, missing or superfluous path, or a file that fails its checks.
    """
    style = _style(prompt_style)
    rule_profile(profile)
    found = find(spec, data_root)
    kind = KINDS[found.kind]
    bounds = bounds_of(pixels, found.kind)
    table, notes = _read(found)
    rows, split = _split(found, table, notes)
    fields, checked = _checked(found, table, rows, split)
    notes += checked
    if limit is not None:
        rows, fields = _limited(rows, fields, limit, seed)
    fields = _seen(rows, fields, kind, style)
    synthetic = table.md5 in _packaged_md5s().values()
    cap = max_new_tokens or (BUILTIN_MAX_NEW_TOKENS if synthetic else MAX_NEW_TOKENS)
    blanks = _Blanks() if blank else None

    def item(row: Row, about: Fields) -> Item:
        content = kind.content(blanks.of(row) if blanks else row, style)
        return Item(about["id"], [{"role": "user", "content": content}], cap, about, bounds)

    fingerprint: dict[str, Any] = {
        "md5": table.md5,
        "rows": len(rows),
        "split": split,
        "prompt_style": style,
        "prompt_hash": prompt_hash(kind.content, style),
        "profile": profile,
        "limit": limit,
        "limit_seed": None if limit is None else seed,
        "blank_images": blank,
        "image_decoding": kind.decoding,
        "pixels": {"budget": pixels, **(asdict(bounds) if bounds else {})},
        "max_new_tokens": cap,
    }
    task = Task(
        name=found.name,
        kind=found.kind,
        metric=kind.metric,
        items=tuple(item(r, f) for r, f in zip(rows, fields, strict=True) if not is_broken(f)),
        fields=tuple(fields),
        profile=profile,
        synthetic=synthetic,
        fingerprint=fingerprint,
        scorer=kind.score,
        source=table.path.name,
        deviations=tuple(notes),
    )
    return mark_broken(task, {})


def _style(name: str | None) -> str:
    return DEFAULT if name is None else prompt_style(name)


def _checked(
    found: Found, table: Table, rows: Sequence[Row], split: str | None
) -> tuple[list[Fields], list[str]]:
    """Fields of the rows, with what is wrong with the broken ones; and notes."""
    findings = registry.check(found, table)
    faults = {**findings.faults, **table.faults}  # what was found while reading is the cause
    if split is not None:
        lost = (row for row in rows if row.get("split") != split)
        unknown = {row.index: f"its split {row.get('split')[:20]!r} is unknown" for row in lost}
        faults = {**unknown, **faults}
    make = KINDS[found.kind].fields
    return [with_fault(make(row), faults.get(row.index)) for row in rows], findings.notes


def _seen(rows: Sequence[Row], fields: Sequence[Fields], kind: Kind, style: str) -> list[Fields]:
    """The fields again, those of rows marked whose images or text no model can be shown."""
    sound = [row for row, f in zip(rows, fields, strict=True) if not is_broken(f)]
    faults = {**text_faults(sound, kind.content, style), **picture_faults(sound)}
    return [with_fault(f, faults.get(row.index)) for row, f in zip(rows, fields, strict=True)]


def _read(found: Found) -> tuple[Table, list[str]]:
    """The rows of a benchmark, and in what it is not the published one."""
    if found.form == "jsonl":
        return read_jsonl(found.place), []
    required = registry.required_columns(found)
    if found.form == "packaged":
        table = read_table(found.place, required=required)
        _check_packaged(table)
        return table, []
    assert found.release is not None  # all other forms are of published benchmarks
    if found.form == "tsv":
        table = read_table(found.place, required=required)
        return table, _release_notes(found.name, found.release, table)
    config = _CONFIGS.get(found.name)
    if found.kind == "mmbench" and config is None:
        raise ValueError(f"{found.name} is published as a TSV only; {_get(found.name)}")
    hub = found.form == "hub"
    folder = fetch(found.place, found.kind, config) if hub else Path(found.place)
    table = read_dataset(folder, found.kind, config)
    origin = found.place if hub else "local files"
    notes = [
        f"read from the Hugging Face form ({origin}), whose pictures may be encoded otherwise than "
        "those of the TSV that published scores were taken with"
    ]
    wanted = found.release.scored or found.release.rows
    return table, notes + _row_note(found.name, wanted, table)


def _get(name: str) -> str:
    return registry.where_to_get(name)


def _release_notes(name: str, release: Published, table: Table) -> list[str]:
    notes = []
    if table.md5 != release.md5:
        notes.append(f"md5 {table.md5} is not that of the published {name} ({release.md5})")
    return notes + _row_note(name, release.rows, table)


def _row_note(name: str, wanted: int, table: Table) -> list[str]:
    if wanted and len(table.rows) != wanted:
        return [f"{len(table.rows)} rows, the published {name} has {wanted}"]
    return []


def _split(found: Found, table: Table, notes: list[str]) -> tuple[list[Row], str | None]:
    """The rows that count; a note if none is marked as doing so.

    A row of a split that the benchmark does not have counts too: it is broken.
    """
    split = found.release.split if found.release else None
    if split is None:
        return list(table.rows), None
    if any(row.get("split") == split for row in table.rows):
        others = set(SPLITS) - {split}
        return [row for row in table.rows if row.get("split") not in others], split
    notes.append(f"no row is marked {split}: all rows count")
    return list(table.rows), None


def _limited(
    rows: Sequence[Row], fields: Sequence[Fields], limit: int, seed: int
) -> tuple[list[Row], list[Fields]]:
    units = {unit: members[0]["category"] for unit, members in by_unit(fields).items()}
    kept = sample_units(units, limit, seed)
    chosen = [(r, f) for r, f in zip(rows, fields, strict=True) if f["unit"] in kept]
    return [r for r, _ in chosen], [f for _, f in chosen]


def _packaged_md5s() -> dict[str, str]:
    path = registry.DATA / "md5s.json"
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def _check_packaged(table: Table) -> None:
    expected = _packaged_md5s().get(table.path.name)
    if table.md5 != expected:
        raise ValueError(
            f"packaged {table.path.name} has md5 {table.md5}, not {expected}; reinstall vlpress"
        )


class _Blanks:
    """Gray images of the sizes that others are shown in, each made once."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, int], Picture] = {}

    def of(self, row: Row) -> Row:
        """The row with gray pictures."""
        return replace(row, images=tuple(self._gray(p.size()) for p in row.images))

    def _gray(self, size: tuple[int, int]) -> Picture:
        if size not in self._made:
            buffer = io.BytesIO()
            Image.new("RGB", size, BLANK_GRAY).save(buffer, format="PNG")
            self._made[size] = Picture.of(buffer.getvalue())
        return self._made[size]
