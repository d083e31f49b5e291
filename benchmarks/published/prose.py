"""English prose from the documentation of installed packages, in windows of equal length.

Sources are descriptions, licences and docstrings of the distributions of this environment. A
paragraph counts as prose if it consists of words and ends like a sentence. The choice depends on
nothing but the files: they are visited in the order of the hash of their names, each gives one
window, and a distribution belongs to either the calibration or the held-out text.
"""

from __future__ import annotations

import ast
import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PER_DISTRIBUTION = 8
"""Largest number of windows of one distribution."""
SETS = ("calibration", "held_out")
HELD_OUT_SHARE = 3
"""One of this many distributions is held out."""
OURS = "vlpress"
SUFFIXES = (".py", ".md", ".rst", ".txt")
NAMES = ("METADATA", "LICENSE", "COPYING", "NOTICE")
LARGEST = 2**20
"""Bytes; larger files are data."""
MIN_CHARACTERS = 120
WORDS = 0.75
"""Share of the characters of prose that are in words of lower-case letters."""
Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Document:
    """A file with enough prose for a window."""

    distribution: str
    version: str
    path: str
    """Relative to the folder of installed packages."""
    sha256: str
    """Of the file."""


@dataclass(frozen=True)
class Windows:
    """Token windows of one set, and the documents that they come from."""

    ids: list[Tensor]
    """int64 `[tokens]` each."""
    documents: list[Document]

    def described(self) -> list[dict[str, Any]]:
        """Documents as plain data for JSON."""
        return [asdict(document) for document in self.documents]


def collect(
    files: Iterable[tuple[Document, Path]], encode: Encode, counts: dict[str, int], length: int
) -> dict[str, Windows]:
    """Collect windows of prose from documentation, in the order of the files.

    Args:
        files: as `installed_files` gives them.
        encode: tokenizer.
        counts: number of windows by set.
        length: tokens per window.

    Raises:
        ValueError: the files have too little prose.
    """
    sets = {name: Windows([], []) for name in counts}
    per_distribution: Counter[str] = Counter()
    seen: set[str] = set()
    for document, path in files:
        windows = sets[set_of(document.distribution)]
        full = len(windows.ids) == counts[set_of(document.distribution)]
        if full or per_distribution[document.distribution] == PER_DISTRIBUTION:
            continue
        if path.suffix == ".py" and not _may_hold(path, length):
            continue
        fresh = [part for part in paragraphs(read(path)) if part not in seen]
        ids = encode("\n\n".join(fresh)) if sum(map(len, fresh)) > 2 * length else []
        if len(ids) < length:
            continue
        seen.update(fresh)
        per_distribution[document.distribution] += 1
        windows.ids.append(torch.tensor(ids[:length]))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        windows.documents.append(Document(**{**asdict(document), "sha256": digest}))
        if all(len(sets[name].ids) == count for name, count in counts.items()):
            return sets
    have = {name: len(windows.ids) for name, windows in sets.items()}
    raise ValueError(f"the files have prose for {have} windows, not for {counts}")


def set_of(distribution: str) -> str:
    """The set that a distribution belongs to."""
    return SETS[int(hashlib.sha256(distribution.encode()).hexdigest(), 16) % HELD_OUT_SHARE == 0]


def read(path: Path) -> str:
    """Documentation in a file: the docstrings of a Python file, the whole text of others."""
    text = path.read_text("utf-8", errors="replace")
    if path.suffix != ".py":
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return ""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(tree) if isinstance(node, documented))
    return "\n\n".join(doc for node in nodes if (doc := ast.get_docstring(node)))


def paragraphs(text: str) -> list[str]:
    """Paragraphs of prose, each on one line, in order; the same paragraph only once."""
    parts = re.split(r"\n\s*\n", text)
    lines = (" ".join(part.split()) for part in parts)
    return list(dict.fromkeys(line for line in lines if is_prose(line)))


def is_prose(line: str) -> bool:
    """Whether a paragraph on one line is English prose and not code, a table or a list."""
    if len(line) < MIN_CHARACTERS or not line.isascii() or not line[0].isupper():
        return False
    if line[-1] not in ".:!?" or re.search(r"https?:|>>>|[{}|`<>]|==|--|::|\*\*|__", line):
        return False
    words = re.findall(r"(?<![\w.])[A-Z]?[a-z]+(?=[ ,.;:!?)])", line)
    return sum(len(word) + 1 for word in words) >= WORDS * len(line)


def installed_files() -> Iterator[tuple[Document, Path]]:
    """All files of this environment that may contain prose, in the order of their names' hashes.

    The documents have no hash yet.
    """
    files: dict[str, tuple[Document, Path]] = {}
    for distribution in distributions():
        name = distribution.metadata["Name"].lower()
        for file in distribution.files or () if name != OURS else ():
            wanted = file.suffix in SUFFIXES or file.name.split(".")[0] in NAMES
            if wanted and not any(part.startswith("test") for part in file.parts):
                document = Document(name, distribution.version, str(file), "")
                files.setdefault(str(file), (document, Path(str(file.locate()))))
    ordered = sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest())
    for name in ordered:
        document, path = files[name]
        if path.is_file() and path.stat().st_size <= LARGEST:
            yield document, path


def _may_hold(path: Path, length: int) -> bool:
    """Whether a Python file is long enough for a window; parsing takes most of the time."""
    return path.stat().st_size > 8 * length
