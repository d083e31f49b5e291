"""The benchmarks, opened by name: the packaged drawings and the published files.

`open_task("builtin-mmbench")` reads a packaged file; `open_task("MMBench_DEV_EN=PATH")` reads a
local copy of the published one. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..extract import DEFAULT_PROFILE, rule_profile
from . import mmbench, mmmu, ocrbench
from .prompts import DEFAULT, Builder, prompt_hash, prompt_style
from .task import Fields, Item, Scorer, Task, by_unit, sample_units
from .tsv import Row, Table, check_images, open_image, read_table

DATA = Path(__file__).resolve().parents[1] / "data"
MAX_NEW_TOKENS = 2048  # the cap the published scores were taken with
BUILTIN_MAX_NEW_TOKENS = 64  # the longest gold answer of the drawings is far below
BLANK_GRAY = (127, 127, 127)
_SOURCE = "https://opencompass.openxlab.space/utils/"


@dataclass(frozen=True)
class Kind:
    """How one benchmark family is checked, asked and scored."""

    metric: str
    required: tuple[str, ...]
    check: Callable[..., list[str]]
    content: Builder
    fields: Callable[[Row], Fields]
    score: Scorer


@dataclass(frozen=True)
class Published:
    """A published benchmark file."""

    kind: str
    url_tail: str
    md5: str
    rows: int
    split: str | None = None  # the split that counts, where the file holds several


KINDS: Mapping[str, Kind] = {
    "mmbench": Kind(
        mmbench.METRIC,
        mmbench.REQUIRED,
        mmbench.check,
        mmbench.content,
        mmbench.fields,
        mmbench.score,
    ),
    "ocrbench": Kind(
        ocrbench.METRIC,
        ocrbench.REQUIRED,
        ocrbench.check,
        ocrbench.content,
        ocrbench.fields,
        ocrbench.score,
    ),
    "mmmu": Kind(mmmu.METRIC, mmmu.REQUIRED, mmmu.check, mmmu.content, mmmu.fields, mmmu.score),
}

BUILTIN: Mapping[str, tuple[str, str]] = {  # name -> kind, packaged file
    "builtin-mmbench": ("mmbench", "builtin_mmbench.tsv.gz"),
    "builtin-mmbench-cn": ("mmbench", "builtin_mmbench_cn.tsv.gz"),
    "builtin-ocrbench": ("ocrbench", "builtin_ocrbench.tsv.gz"),
    "builtin-mmmu": ("mmmu", "builtin_mmmu.tsv.gz"),
}

PUBLISHED: Mapping[str, Published] = {
    "MMBench_DEV_EN": Published(
        "mmbench",
        "benchmarks/MMBench/MMBench_DEV_EN.tsv",
        "b6caf1133a01c6bb705cf753bb527ed8",
        4329,
    ),
    "MMBench_DEV_CN": Published(
        "mmbench",
        "benchmarks/MMBench/MMBench_DEV_CN.tsv",
        "08b8fc3324a5ed74155350f57be69fbd",
        4329,
    ),
    "MMBench_DEV_EN_V11": Published(
        "mmbench",
        "benchmarks/MMBench/MMBench_DEV_EN_V11.tsv",
        "30c05be8f2f347a50be25aa067248184",
        0,  # not published together with the digest
    ),
    "MMBench_DEV_CN_V11": Published(
        "mmbench",
        "benchmarks/MMBench/MMBench_DEV_CN_V11.tsv",
        "593f9b5f6bea453d870a798b34ae4f37",
        0,
    ),
    "OCRBench": Published(
        "ocrbench", "VLMEval/OCRBench.tsv", "e953d98a987cc6e26ef717b61260b778", 1000
    ),
    "MMMU_DEV_VAL": Published(
        "mmmu",
        "VLMEval/MMMU_DEV_VAL.tsv",
        "585e8ad75e73f75dcad265dfd0417d64",
        1050,
        split="validation",
    ),
}


def open_task(
    spec: str,
    *,
    limit: int | None = None,
    prompt_style: str | None = None,
    profile: str = DEFAULT_PROFILE,
    blank: bool = False,
    seed: int = 0,
    max_new_tokens: int | None = None,
) -> Task:
    """Open a benchmark.

    Args:
        spec: `builtin-...`, or `NAME=PATH` for a local copy of a published file.
        limit: keep this many questions (a circular group is one), spread over the categories.
        prompt_style: a name of `prompts.STYLES`; None is the dataset's own layout. Pass
            `default_prompt_style(config.family)` for the layout a family was published with.
        profile: extraction rules, a name of `extract.PROFILES`.
        blank: replace every picture by a gray one of its size, to see what guessing scores.
        seed: of the choice that `limit` makes.
        max_new_tokens: cap on an answer; None is 2048, or 64 for the packaged files.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: unknown name, missing or superfluous path, or a file that fails its checks.
    """
    style = _style(prompt_style)
    rule_profile(profile)
    name, kind_name, table, notes, synthetic, split = _open_table(spec)
    kind = KINDS[kind_name]
    rows = [row for row in table.rows if split is None or row.get("split") == split]
    fields = [kind.fields(row) for row in rows]
    if limit is not None:
        units = {unit: members[0]["category"] for unit, members in by_unit(fields).items()}
        kept = sample_units(units, limit, seed)
        chosen = [(r, f) for r, f in zip(rows, fields, strict=True) if f["unit"] in kept]
        rows, fields = [r for r, _ in chosen], [f for _, f in chosen]
    check_images(table.path, rows)
    if blank:
        rows = list(_blanked(rows))
    cap = max_new_tokens or (BUILTIN_MAX_NEW_TOKENS if synthetic else MAX_NEW_TOKENS)
    items = tuple(
        Item(
            id=f["id"],
            messages=[{"role": "user", "content": kind.content(row, style)}],
            max_new_tokens=cap,
            fields=f,
        )
        for row, f in zip(rows, fields, strict=True)
    )
    fingerprint: dict[str, Any] = {
        "md5": table.md5,
        "rows": len(items),
        "split": split,
        "items": hashlib.sha256("\n".join(i.id for i in items).encode()).hexdigest(),
        "prompt_style": style,
        "prompt_hash": prompt_hash(kind.content, style),
        "profile": profile,
        "limit": limit,
        "limit_seed": None if limit is None else seed,
        "blank_images": blank,
        "max_new_tokens": cap,
    }
    return Task(
        name=name,
        kind=kind_name,
        metric=kind.metric,
        items=items,
        profile=profile,
        synthetic=synthetic,
        fingerprint=fingerprint,
        scorer=kind.score,
        notes=tuple(notes),
    )


def _style(name: str | None) -> str:
    return DEFAULT if name is None else prompt_style(name)


def check_spec(spec: str) -> tuple[str, Path]:
    """The benchmark that a spec names and its file, found but not read.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: unknown name, missing or superfluous path.
    """
    name, _, path = spec.partition("=")
    if name.lower() in BUILTIN:
        name = name.lower()
        if path:
            raise ValueError(f"{name} is packaged and takes no path; got {spec!r}")
        return name, DATA / BUILTIN[name][1]
    names = {known.lower(): known for known in PUBLISHED}
    if name.lower() not in names:
        known = ", ".join((*BUILTIN, *(f"{n}=PATH" for n in PUBLISHED)))
        raise ValueError(f"unknown benchmark {name!r}; choose one of {known}")
    name = names[name.lower()]
    if not path:
        raise ValueError(f"{name} needs a local file: write {name}=PATH; {where_to_get(name)}")
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f"benchmark file {path} does not exist; give the path of a TSV; {where_to_get(name)}"
        )
    return name, file


def where_to_get(name: str) -> str:
    """Say where a published benchmark file comes from."""
    release = PUBLISHED[name]
    return f"VLMEvalKit publishes it at {_SOURCE}{release.url_tail} (md5 {release.md5})"


def _open_table(spec: str) -> tuple[str, str, Table, list[str], bool, str | None]:
    """Resolve a spec: name, kind, table, notes, whether synthetic, the split that counts."""
    name, path = check_spec(spec)
    if name in BUILTIN:
        kind, file = BUILTIN[name]
        table = read_table(path, required=KINDS[kind].required)
        _check_packaged(file, table.md5)
        return name, kind, table, KINDS[kind].check(table, published=False), True, None
    release = PUBLISHED[name]
    table = read_table(path, required=KINDS[release.kind].required)
    notes = _release_notes(name, release, table)
    notes += KINDS[release.kind].check(table, published=table.md5 == release.md5)
    split = release.split
    if split and not any(row.get("split") == split for row in table.rows):
        notes.append(f"no row is marked {split}: all rows count")
        split = None
    synthetic = table.md5 in _packaged_md5s().values()
    return name, release.kind, table, notes, synthetic, split


def _release_notes(name: str, release: Published, table: Table) -> list[str]:
    notes = []
    if table.md5 != release.md5:
        notes.append(f"md5 {table.md5} is not that of the published {name} ({release.md5})")
    if release.rows and len(table.rows) != release.rows:
        notes.append(f"{len(table.rows)} rows, the published {name} has {release.rows}")
    return notes


def _packaged_md5s() -> dict[str, str]:
    path = DATA / "md5s.json"
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def _check_packaged(file: str, md5: str) -> None:
    expected = _packaged_md5s().get(file)
    if md5 != expected:
        raise ValueError(f"packaged {file} has md5 {md5}, not {expected}; reinstall vlpress")


def _blanked(rows: Iterable[Row]) -> Iterable[Row]:
    made: dict[tuple[int, int], bytes] = {}
    for row in rows:
        images = []
        for data in row.images:
            size = open_image(data).size
            if size not in made:
                buffer = io.BytesIO()
                Image.new("RGB", size, BLANK_GRAY).save(buffer, format="PNG")
                made[size] = buffer.getvalue()
            images.append(made[size])
        yield Row(row.index, row.values, tuple(images))
