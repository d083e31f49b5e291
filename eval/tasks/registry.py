"""Registry of benchmarks and lookup of their files; no file is read here.

A benchmark spec is `builtin-...` (packaged drawings), `NAME` or `NAME=PATH` (published: a TSV, a
folder of parquet files, or a dataset's hub id), or `ANYNAME=FILE` (custom questions in a JSONL, CSV
or TSV file).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ...common.near_misses import did_you_mean, near_misses, near_paths
from ...common.text_files import decode_utf8, read_object
from .benchmarks import (
    chartqa,
    custom,
    docvqa,
    mmbench,
    mmmu,
    mmmu_pro,
    mmmu_pro_vision,
    ocrbench,
    ocrbench_v2,
    refcoco,
    screenspot,
    textvqa,
)
from .coordinates import COORDINATES, find_coordinates
from .files.image_store import AS_DISPLAYED, VLMEVALKIT, Decoding
from .files.jsonl import SUFFIXES as CUSTOM_SUFFIXES
from .files.rows import BenchmarkTable, Findings, Row
from .files.tables import read_columns
from .prompts import Content
from .published import ALIASES, PUBLISHED, Published
from .task import Fields, Scorer

DATA = Path(__file__).resolve().parents[1] / "data"
_SUFFIXES = (".tsv", ".tsv.gz")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
_NAME = re.compile(r"\w[\w.-]*")
_RESERVED = ("run.json", "scores.json", "quantization.json", "text.jsonl", "throughput.json")
"""Files next to the folders of benchmarks in a stored evaluation."""
_HEAD = 1 << 16  # bytes read to name the columns of a file


@dataclass(frozen=True)
class TaskKind:
    """Implementation of a benchmark family: checks, prompts and scoring."""

    metric: str
    required: tuple[str, ...]  # columns
    check: Callable[..., Findings]
    content: Callable[..., Content]
    fields: Callable[..., Fields]
    score: Scorer
    decoding: Decoding
    locates: bool = False
    """Whether answers are places: `content` and `fields` need `with_coordinates`."""
    index: Callable[[Mapping[str, str]], str] | None = None
    """Id of a row of the TSV; None: its `index`."""
    left_out: Callable[[Row], str] | None = None
    """Part of the benchmark of a row that is not scored, empty for others; None: all are scored."""

    def with_coordinates(self, name: str | None) -> TaskKind:
        """Return the kind whose places are read by a rule, a name of `coordinates.COORDINATES`.

        Raises:
            ValueError: the rule is unknown, or it is None and answers are places.
        """
        if not self.locates:
            return self
        if name is None:
            raise ValueError(
                "answers are places in images: give --coordinates, the rule of the model's family; "
                f"choose one of {', '.join(COORDINATES)}"
            )
        find_coordinates(name)
        return replace(
            self,
            content=partial(self.content, coordinates=name),
            fields=partial(self.fields, coordinates=name),
        )


@dataclass(frozen=True)
class Benchmark:
    """A benchmark whose file is located but not read."""

    name: str  # key in reports
    kind: str  # a key of `TASK_KINDS`
    location: str
    """Path of a file or folder, or a hub id."""
    form: str  # packaged, tsv, custom, dataset (a folder) or hub
    release: Published | None = None


TASK_KINDS: Mapping[str, TaskKind] = {
    name: TaskKind(
        module.METRIC,
        module.REQUIRED,
        module.check,
        module.content,
        module.fields,
        module.score,
        AS_DISPLAYED if module is custom else VLMEVALKIT,
        locates=getattr(module, "LOCATES", False),
        index=getattr(module, "index", None),
        left_out=getattr(module, "left_out", None),
    )
    for name, module in (
        ("mmbench", mmbench),
        ("ocrbench", ocrbench),
        ("mmmu", mmmu),
        ("mmmu_pro", mmmu_pro),
        ("mmmu_pro_vision", mmmu_pro_vision),
        ("docvqa", docvqa),
        ("chartqa", chartqa),
        ("textvqa", textvqa),
        ("ocrbench_v2", ocrbench_v2),
        ("refcoco", refcoco),
        ("screenspot", screenspot),
        ("own", custom),
    )
}

BUILTIN: Mapping[str, tuple[str, str]] = {  # name -> kind, packaged file
    "builtin-mmbench": ("mmbench", "builtin_mmbench.tsv.gz"),
    "builtin-mmbench-cn": ("mmbench", "builtin_mmbench_cn.tsv.gz"),
    "builtin-ocrbench": ("ocrbench", "builtin_ocrbench.tsv.gz"),
    "builtin-mmmu": ("mmmu", "builtin_mmmu.tsv.gz"),
}


def find_benchmark(spec: str, data_root: str | Path | None = None) -> Benchmark:
    """Resolve a spec to a benchmark and locate its file.

    Args:
        spec: name and location, see the module.
        data_root: folder of published files under their names.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the name is unknown, or a path is missing or superfluous.
    """
    name, _, location = spec.partition("=")
    if not location and name.lower().endswith(CUSTOM_SUFFIXES):
        name, location = Path(name).stem, name
    if name.lower() in BUILTIN:
        name = name.lower()
        if location:
            raise ValueError(f"{name} is packaged and takes no path; got {spec!r}")
        kind, file = BUILTIN[name]
        return Benchmark(name, kind, str(DATA / file), "packaged")
    published = {**ALIASES, **{key.lower(): key for key in PUBLISHED}}
    if name.lower() not in published:
        return _find_custom(name, location)
    name = published[name.lower()]
    location = location or _find_in(data_root, name)
    _refuse_other_form(name, Path(location).expanduser())
    return _find_published(name, location)


def _find_custom(name: str, location: str) -> Benchmark:
    if not location:
        allowed = ", ".join((*BUILTIN, *(f"{n}=PATH" for n in PUBLISHED), "ANYNAME=FILE.csv"))
        hint = did_you_mean(near_misses(name, (*BUILTIN, *PUBLISHED)))
        raise ValueError(f"unknown benchmark {name!r};{hint} choose one of {allowed}")
    if not _NAME.fullmatch(name) or name.lower() in _RESERVED:
        raise ValueError(
            f"{name!r} cannot name a benchmark; use letters, digits, '.', '_' and '-', as in "
            f"--bench photos={location}"
        )
    file = Path(location).expanduser()
    kinds = ", ".join(CUSTOM_SUFFIXES)
    if not file.exists():
        raise FileNotFoundError(
            f"benchmark file {file} does not exist;{did_you_mean(near_paths(file))} {name} is no "
            f"published benchmark and needs a file of your own questions ({kinds}), see "
            "docs/own-tasks.md"
        )
    if not file.is_file() or file.suffix.lower() not in CUSTOM_SUFFIXES:
        kind = f"a {file.suffix or 'nameless'} file" if file.is_file() else "a folder"
        raise ValueError(
            f"{file} is {kind}; own questions are read from {kinds} (a spreadsheet can be saved "
            "as CSV), see docs/own-tasks.md"
        )
    return Benchmark(name, "own", str(file), "custom")


def near_miss(benchmark: Benchmark) -> str:
    """Return a warning if custom questions are named nearly like a known benchmark, or nothing."""
    if benchmark.form != "custom":
        return ""
    similar = near_misses(benchmark.name, (*BUILTIN, *PUBLISHED))
    if not similar:
        return ""
    return (
        f"{benchmark.name} is read and scored as your own questions, not as the benchmark "
        f"{similar[0]}, whose name is nearly the same"
    )


def _refuse_other_form(name: str, path: Path) -> None:
    """Refuse a file under a published name that lacks the columns of the published one.

    Raises:
        ValueError: see above; the message has the columns that the file has.
    """
    suffix = path.suffix.lower()
    if suffix not in CUSTOM_SUFFIXES or not path.is_file():
        return
    required = ("index", "image", *TASK_KINDS[PUBLISHED[name].kind].required)
    with path.open("rb") as file:
        head = file.readline(_HEAD)
    try:
        text = decode_utf8(head, path.name)
        columns = list(read_object(text)) if suffix == ".jsonl" else read_columns(text, suffix)
    except ValueError as error:
        columns = [f"an unreadable first line: {error}"]
    if suffix != ".tsv" or any(column not in columns for column in required):
        raise ValueError(
            f"{name} is a published benchmark, a TSV with the columns {', '.join(required)}; "
            f"{path.name} has {', '.join(columns)[:200] or 'none'}; give own questions another "
            f"name, as in --bench photos={path.name}"
        )


def _find_published(name: str, location: str) -> Benchmark:
    release = PUBLISHED[name]
    path = Path(location).expanduser()
    if path.is_dir():
        return Benchmark(name, release.kind, str(path), "dataset", release)
    if path.is_file():
        return Benchmark(name, release.kind, str(path), "tsv", release)
    if _HUB_ID.fullmatch(location) and not location.endswith(_SUFFIXES):
        return Benchmark(name, release.kind, location, "hub", release)
    raise FileNotFoundError(
        f"benchmark file {location} does not exist;{did_you_mean(near_paths(path))} give the path "
        f"of a TSV, a folder of parquet files or a hub id; {where_to_get(name)}"
    )


def _find_in(data_root: str | Path | None, name: str) -> str:
    """Return the path of a published benchmark in a data root."""
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
    """Describe the download address of a published benchmark file."""
    release = PUBLISHED[name]
    return f"VLMEvalKit publishes it at {release.url} (md5 {release.md5})"


def check_table(benchmark: Benchmark, table: BenchmarkTable) -> Findings:
    """Apply the checks of the benchmark's kind.

    Raises:
        ValueError: the file as a whole is unusable.
    """
    published = benchmark.release is not None and table.md5 == benchmark.release.md5
    return TASK_KINDS[benchmark.kind].check(table, published=published)
