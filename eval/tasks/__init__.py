"""Benchmarks, opened by name: packaged drawings, published files, custom questions.

`open_task("builtin-mmbench")` reads a packaged file, `open_task("MMBench_DEV_EN=PATH")` a copy of
the published one, `open_task("mine=questions.csv")` custom questions. Only datasets given by a
hub id are fetched.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import Image

from .broken import find_text_faults, mark_broken
from .coordinates import find_coordinates
from .extract import DEFAULT_PROFILE, find_profile
from .files.image_store import StoredImage
from .files.rows import BenchmarkTable, Row, find_image_faults
from .generated.answer_limits import default_limit
from .generated.reasoning import NONE, find_rule
from .prompts import DEFAULT, find_prompt_style, prompt_hash
from .reading import leave_out, packaged_md5s, read_benchmark, select_split
from .registry import (
    BUILTIN,
    TASK_KINDS,
    Benchmark,
    TaskKind,
    check_table,
    find_benchmark,
)
from .resolution import DEFAULT as MODEL_PIXELS
from .resolution import check_budget, find_bounds
from .task import Fields, Item, Task, by_unit, is_broken, sample_units, with_fault

BLANK_GRAY = (127, 127, 127)
REASONING = "reasoning"
"""Key of the rule in a task's fingerprint; without it the rule is none."""
PLACES = "coordinates"
"""Key of the rule of places in the fingerprint of a task whose answers are places."""

__all__ = ["BUILTIN", "TASK_KINDS", "check_spec", "open_task"]


def check_spec(
    spec: str,
    *,
    prompt_style: str | None = None,
    profile: str = DEFAULT_PROFILE,
    pixels: str = MODEL_PIXELS,
    reasoning: str = NONE,
    coordinates: str | None = None,
    data_root: str | Path | None = None,
) -> Benchmark:
    """Check the arguments of `open_task` and locate the file without reading it.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a name is unknown, or a path is missing or superfluous.
    """
    if prompt_style is not None:
        find_prompt_style(prompt_style)
    find_profile(profile)
    check_budget(pixels)
    find_rule(reasoning)
    if coordinates is not None:
        find_coordinates(coordinates)
    return find_benchmark(spec, data_root)


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
    reasoning: str = NONE,
    coordinates: str | None = None,
    data_root: str | Path | None = None,
) -> Task:
    """Open a benchmark; rows that no model can be given are broken, see `broken`.

    Args:
        spec: `NAME` or `NAME=LOCATION`, see `registry`.
        limit: number of questions to keep (a circular group is one), spread over the categories.
            One that leaves nothing out is not recorded: the task is that of the whole file.
        prompt_style: a name of `prompts.STYLES`; None: the dataset's layout. Pass
            `default_prompt_style(config.family)` for the layout of a family's published scores.
        profile: answer-extraction rules, a name of `extract.PROFILES`.
        blank: replace every image by a gray one of its size, to measure the score of guessing.
        seed: seed of the sample that `limit` draws.
        max_new_tokens: cap on an answer with its reasoning; None: see `default_limit`.
        pixels: bounds of the images' area, a name of `resolution.BUDGETS`.
        reasoning: rule that separates reasoning from answer, a name of `reasoning.RULES`. Pass
            `choose_rule(processor)` for that of a model's chat template.
        coordinates: rule by which places in images are asked for and read, a name of
            `coordinates.COORDINATES`; needed by benchmarks whose answers are places. Pass
            `default_coordinates(config.family)` for that of a family.
        data_root: folder of published files under their names.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a name is unknown, a path is missing or superfluous, the rule of places is
            missing, or the file fails its checks.
    """
    benchmark = check_spec(
        spec,
        prompt_style=prompt_style,
        profile=profile,
        pixels=pixels,
        reasoning=reasoning,
        coordinates=coordinates,
        data_root=data_root,
    )
    style = DEFAULT if prompt_style is None else find_prompt_style(prompt_style)
    kind = TASK_KINDS[benchmark.kind].with_coordinates(coordinates)
    bounds = find_bounds(pixels, benchmark.kind)
    table, notes = read_benchmark(benchmark)
    rows, split = select_split(benchmark, table, notes)
    rows = leave_out(kind, rows, notes)
    fields, check_notes = _make_fields(benchmark, kind, table, rows, split)
    notes += check_notes
    if limit is not None:
        n_rows = len(rows)
        rows, fields = _sample(rows, fields, limit, seed)
        limit = limit if len(rows) < n_rows else None  # nothing was left out: not a sample
    fields = _mark_unusable(rows, fields, kind, style)
    synthetic = table.md5 in packaged_md5s().values()
    cap = max_new_tokens or default_limit(reasoning, synthetic=synthetic)
    blanks = _BlankImages() if blank else None

    def make_item(row: Row, row_fields: Fields) -> Item:
        content = kind.content(blanks.replace_images(row) if blanks else row, style)
        messages = [{"role": "user", "content": content}]
        return Item(row_fields["id"], messages, cap, row_fields, bounds, reasoning)

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
        **({} if reasoning == NONE else {REASONING: reasoning}),
        **({PLACES: coordinates} if kind.locates else {}),
    }
    task = Task(
        name=benchmark.name,
        kind=benchmark.kind,
        metric=kind.metric,
        items=tuple(make_item(r, f) for r, f in zip(rows, fields, strict=True) if not is_broken(f)),
        fields=tuple(fields),
        profile=profile,
        synthetic=synthetic,
        fingerprint=fingerprint,
        scorer=kind.score,
        source=table.path.name,
        deviations=tuple(notes),
    )
    return mark_broken(task, {})


def _make_fields(
    benchmark: Benchmark,
    kind: TaskKind,
    table: BenchmarkTable,
    rows: Sequence[Row],
    split: str | None,
) -> tuple[list[Fields], list[str]]:
    """Return the fields of the rows, with the faults of broken ones, and notes."""
    findings = check_table(benchmark, table)
    faults = {**findings.faults, **table.faults}  # a fault found while reading is the cause
    if split is not None:
        strays = (row for row in rows if row.get("split") != split)
        unknown = {row.index: f"its split {row.get('split')[:20]!r} is unknown" for row in strays}
        faults = {**unknown, **faults}
    return [with_fault(kind.fields(row), faults.get(row.index)) for row in rows], findings.notes


def _mark_unusable(
    rows: Sequence[Row], fields: Sequence[Fields], kind: TaskKind, style: str
) -> list[Fields]:
    """Return the fields, with faults added to rows whose images or text no model can be given."""
    sound = [row for row, f in zip(rows, fields, strict=True) if not is_broken(f)]
    faults = {**find_text_faults(sound, kind.content, style), **find_image_faults(sound)}
    return [with_fault(f, faults.get(row.index)) for row, f in zip(rows, fields, strict=True)]


def _sample(
    rows: Sequence[Row], fields: Sequence[Fields], limit: int, seed: int
) -> tuple[list[Row], list[Fields]]:
    """Return the rows of `limit` sampled questions with their fields."""
    units = {unit: members[0]["category"] for unit, members in by_unit(fields).items()}
    sample = sample_units(units, limit, seed)
    chosen = [(r, f) for r, f in zip(rows, fields, strict=True) if f["unit"] in sample]
    return [r for r, _ in chosen], [f for _, f in chosen]


class _BlankImages:
    """Gray images, one per size."""

    def __init__(self) -> None:
        self._by_size: dict[tuple[int, int], StoredImage] = {}

    def replace_images(self, row: Row) -> Row:
        """Return the row with gray images of the same sizes."""
        return replace(row, images=tuple(self._make(image.size) for image in row.images))

    def _make(self, size: tuple[int, int]) -> StoredImage:
        if size not in self._by_size:
            buffer = io.BytesIO()
            Image.new("RGB", size, BLANK_GRAY).save(buffer, format="PNG")
            self._by_size[size] = StoredImage.of(buffer.getvalue())
        return self._by_size[size]
