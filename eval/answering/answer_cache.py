"""Answers of evaluations without an output folder, kept in the user's cache folder.

An evaluation has a folder named by its model and its options, so that the same call resumes, also
after an interruption. Folders that have not been used for `MAX_DAYS` are removed at the next use of
the cache, and the longest unused ones while all of them take more than `MAX_BYTES`.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from ...common.options import recorded
from ...common.output_dir import sole_use
from ..config import EvaluateOptions
from ..tasks.task import hash_values

VARIABLE = "VLPRESS_CACHE"
MAX_DAYS = 30
MAX_BYTES = 4 << 30
_DAY = 86400.0
_IRRELEVANT = ("out", "limit", "rules", "threads", "no_cache", "concurrency", "timeout", "retries")
"""Options that do not choose the folder: the stored answers are valid with any value of them."""
_PATHS = ("model", "text", "reference", "data_root")


def cache_root() -> Path:
    """Return the cache folder: VLPRESS_CACHE, else `vlpress` in XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get(VARIABLE):
        return Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "vlpress"


def cache_folder(options: EvaluateOptions) -> Path:
    """Return the folder of an evaluation, named by its model and a digest of its options.

    Equal names are no proof of an equal setup: a stored evaluation is checked by its fingerprint.
    """
    values = recorded(options, always=("model", "endpoint"))
    key = {name: _plain(name, value) for name, value in values.items() if name not in _IRRELEVANT}
    name = str(options.served_model or options.endpoint or options.model)
    slug = re.sub(r"[^\w.-]+", "-", name.rstrip("/").rpartition("/")[2]).strip("-.")[:48]
    digest = hash_values([key, _identify(options.model)])[:12]
    return cache_root() / "eval" / f"{slug or 'model'}-{digest}"


def _plain(name: str, value: Any) -> Any:
    """Return an option as a JSON value, paths of files absolute."""
    if name == "bench":
        return [_absolute_bench(spec) for spec in value]
    if name in _PATHS and value is not None:
        return _absolute(str(value))
    return value if isinstance(value, bool | int | float | None) else str(value)


def _absolute_bench(spec: str) -> str:
    name, mark, location = spec.partition("=")
    return f"{name}={_absolute(location)}" if mark else _absolute(spec)


def _absolute(path: str) -> str:
    file = Path(path).expanduser()
    return str(file.resolve()) if file.exists() else path


def _identify(model: str | Path | None) -> list[Any]:
    """Return names, sizes and times of a local checkpoint's files: another one has a new folder."""
    folder = Path(str(model)).expanduser()
    if model is None or not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def prune_cache(keep: Path) -> list[Path]:
    """Remove folders of the cache that are old, or too large in total; those in use are kept.

    Args:
        keep: folder that is about to be used; its time of use becomes the present.

    Returns:
        The removed folders.
    """
    keep.mkdir(parents=True, exist_ok=True)
    os.utime(keep)
    used = {path: path.stat().st_mtime for path in keep.parent.iterdir() if path.is_dir()}
    oldest, total, removed = time.time() - MAX_DAYS * _DAY, 0, []
    for path in sorted(used, key=lambda each: -used[each]):
        total += _count_bytes(path)
        is_left_over = used[path] < oldest or total > MAX_BYTES
        if path != keep and is_left_over and _remove(path):
            removed.append(path)
    return removed


def _count_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _remove(folder: Path) -> bool:
    try:
        with sole_use(folder):
            shutil.rmtree(folder)
    except ValueError:  # in use
        return False
    return True


def describe_cache(folder: Path, removed: list[Path]) -> str:
    """Describe where the answers are kept, and what was removed from there."""
    text = f"answers are kept in {folder} (-o names another folder, --no-cache keeps none)"
    return text + (f"; {len(removed)} older ones were removed" if removed else "")
