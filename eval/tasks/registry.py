"""Which benchmarks there are and where their files lie; nothing is read here but folder listings.

A benchmark is named `builtin-...` (packaged drawings), `NAME` or `NAME=PATH` (published: a TSV, a
folder of parquet files, or a dataset's hub id), or `ANYNAME=FILE.jsonl` (one's own questions).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import custom, mmbench, mmmu, ocrbench
from .files.image_store import AS_DISPLAYED, VLMEVALKIT, Decoding
from .files.table import Findings, Row, Table
from .prompts import Builder
from .task import Fields, Scorer

DATA = Path(__file__).resolve().parents[1] / "data"
_SOURCE = "https://opencompass.openxlab.space/utils/"
_SUFFIXES = (".tsv", ".tsv.gz")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Kind:
    """How one benchmark family is checked, asked and scored."""

    metric: str
    required: tuple[str, ...]
    check: Callable[..., Findings]
    content: Builder
    fields: Callable[[Row], Fields]
    score: Scorer
    decoding: Decoding  # of its images


@dataclass(frozen=True)
class Published:
    """A published benchmark file."""

    kind: str
    url_tail: str
    md5: str
    rows: int
    split: str | None = None  # the split that counts, where the file holds several
    scored: int = 0  # rows of that split


@dataclass(frozen=True)
class Found:
    """A benchmark that was named and found, not yet read."""

    name: str  # key in reports
    kind: str
    place: str
    """Path of a file or folder, or a hub id."""
    form: str  # packaged, tsv, jsonl, dataset (a folder) or hub
    release: Published | None = None


KINDS: Mapping[str, Kind] = {
    name: Kind(
        room.METRIC,
        room.REQUIRED,
        room.check,
        room.content,
        room.fields,
        room.score,
        AS_DISPLAYED if room is custom else VLMEVALKIT,
    )
    for name, room in (
        ("mmbench", mmbench),
        ("ocrbench", ocrbench),
        ("mmmu", mmmu),
        ("own", custom),
    )
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
        scored=900,
    ),
}


def find(spec: str, data_root: str | Path | None = None) -> Found:
    """The benchmark that a spec names and its file, found but not read.

    Args:
        spec: see the module.
        data_root: folder that holds published files under their names.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: unknown name, missing or superfluous path.
    """
    name, _, place = spec.partition("=")
    if not place and name.endswith(".jsonl"):
        name, place = Path(name).stem, name
    if name.lower() in BUILTIN:
        name = name.lower()
        if place:
            raise ValueError(f"{name} is packaged and takes no path; got {spec!r}")
        kind, file = BUILTIN[name]
        return Found(name, kind, str(DATA / file), "packaged")
    if place.endswith(".jsonl"):
        return _find_own(name, Path(place).expanduser())
    names = {known.lower(): known for known in PUBLISHED}
    if name.lower() not in names:
        known = ", ".join((*BUILTIN, *(f"{n}=PATH" for n in PUBLISHED), "ANYNAME=FILE.jsonl"))
        raise ValueError(f"unknown benchmark {name!r}; choose one of {known}")
    name = names[name.lower()]
    return _find_published(name, place or _under(data_root, name))


def _find_own(name: str, file: Path) -> Found:
    if not _NAME.fullmatch(name) or name.lower() in {known.lower() for known in PUBLISHED}:
        raise ValueError(
            f"{name!r} cannot name questions of your own; use letters, digits, '.', '_' and '-', "
            "and no name of a published benchmark"
        )
    if not file.is_file():
        raise FileNotFoundError(f"benchmark file {file} does not exist; docs/own-tasks.md has one")
    return Found(name, "own", str(file), "jsonl")


def _find_published(name: str, place: str) -> Found:
    release = PUBLISHED[name]
    path = Path(place).expanduser()
    if path.is_dir():
        return Found(name, release.kind, str(path), "dataset", release)
    if path.is_file():
        return Found(name, release.kind, str(path), "tsv", release)
    if _HUB_ID.fullmatch(place) and not place.endswith(_SUFFIXES):
        return Found(name, release.kind, place, "hub", release)
    raise FileNotFoundError(
        f"benchmark file {place} does not exist; give the path of a TSV, a folder of parquet "
        f"files or a hub id; {where_to_get(name)}"
    )


def _under(data_root: str | Path | None, name: str) -> str:
    """What a data root holds for a published benchmark."""
    if data_root is None:
        raise ValueError(
            f"{name} needs a local file: write {name}=PATH or give its folder as --data-root; "
            f"{where_to_get(name)}"
        )
    root = Path(data_root).expanduser()
    candidates = [root / f"{name}{suffix}" for suffix in _SUFFIXES] + [root / name]
    for candidate in candidates:
        if candidate.exists():
            return str(candidate)
    raise FileNotFoundError(
        f"{root} holds none of {', '.join(c.name for c in candidates)}; {where_to_get(name)}"
    )


def where_to_get(name: str) -> str:
    """Say where a published benchmark file comes from."""
    release = PUBLISHED[name]
    return f"VLMEvalKit publishes it at {_SOURCE}{release.url_tail} (md5 {release.md5})"


def required_columns(found: Found) -> Sequence[str]:
    """Columns that the file must have besides index and image."""
    return KINDS[found.kind].required


def check(found: Found, table: Table) -> Findings:
    """Apply the checks of the benchmark's kind.

    Raises:
        ValueError: the file as a whole is unusable.
    """
    published = found.release is not None and table.md5 == found.release.md5
    return KINDS[found.kind].check(table, published=published)
