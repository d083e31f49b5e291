"""Cache of small results as JSON files, for measurements and counts that take seconds to repeat."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .atomic import write_json

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Cached:
    """A value of the cache."""

    value: Any
    """JSON values."""
    file: Path
    """File of the value; it does not exist if the folder cannot be written to."""
    is_reused: bool
    """Whether an earlier call stored the value."""

    @property
    def note(self) -> str:
        """Where the value comes from, for the user."""
        if self.is_reused:
            return f"cached in {self.file}"
        return f"new, {'cached in' if self.file.is_file() else 'cannot be cached in'} {self.file}"


def cache_folder() -> Path:
    """Return the folder of all caches: `$VLPRESS_CACHE`, by default `~/.cache/vlpress`."""
    return Path(os.environ.get("VLPRESS_CACHE") or Path.home() / ".cache" / "vlpress")


def cached(
    name: str, key: Mapping[str, Any], compute: Callable[[], Any], *, refresh: bool = False
) -> Cached:
    """Return a stored value, or compute and store it.

    A damaged file is replaced. If the folder cannot be written to, the value is computed each time.

    Args:
        name: start of the file's name.
        key: everything that the value depends on, JSON values.
        compute: returns the value, JSON values.
        refresh: compute it even if it is stored.
    """
    words = json.dumps(key, sort_keys=True)
    digest = hashlib.sha256(words.encode()).hexdigest()[:16]
    file = cache_folder() / f"{name}-{digest}.json"
    if not refresh:
        try:
            stored = json.loads(file.read_bytes())
            return Cached(stored["value"], file, True)
        except (OSError, ValueError, LookupError, TypeError):
            pass  # absent or damaged
    value = compute()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"key": dict(key), "value": value})
    except OSError:
        pass  # read-only home folders are common in containers
    return Cached(value, file, False)


def digest_files(files: list[Path]) -> str:
    """Return a digest of the names and contents of files."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.name} ".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def digest_code(*packages: str) -> str:
    """Return a digest of vlpress's own source files in packages, given as paths in it."""
    return digest_files([file for name in packages for file in (PACKAGE / name).rglob("*.py")])
