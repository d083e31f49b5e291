"""Count paraphrases that the project's English avoids (docs/glossary.md has the terms).

    python tools/language.py [ROOT]

Prints each count and its limit, and exits with 1 if one is exceeded. Words are those of docstrings,
comments and Markdown; locals are those of functions outside tests/.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlpress.common.imports import without_collections

PACKAGES = ("src/vlpress", "model", "calib", "quant", "eval", "tools", "benchmarks")
LOCALS = ("found", "said", "mine", "wanted", "asked", "place")
"""Names of local variables that describe the act instead of the content."""


@dataclass(frozen=True)
class Rule:
    """A pattern in prose and how often it may occur per 10,000 words."""

    name: str
    pattern: str
    limit: float


RULES = (
    Rule("picture", r"pictures?", 3),
    Rule("what a/the/it/is as a noun", r"what (?:an?|the|its?|is|was|they|each|one)", 8),
    Rule("who, whoever, nobody", r"who|whoever|nobody", 0),
    Rule("goes on", r"go(?:es)? on|going on", 0),
    Rule("what it makes of", r"what \w+ makes? of", 0),
    Rule("lies in", r"lies? (?:in|on|at|behind|beside)", 0),
    Rule("stands for a place", r"stands? (?:in|on|twice|behind|beside)", 0),
    Rule("room for a package", r"rooms|(?:the|this|each) room", 0),
)
FOUND_LIMIT = 2.0
"""Functions with a local called `found`, per 1,000 functions."""
STRING_OR_COMMENT = re.compile(
    r"""\"{3}(?:\\.|.)*?\"{3}|'{3}(?:\\.|.)*?'{3}|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|#[^\n]*""",
    re.DOTALL,
)


def main() -> None:
    """Print the counts of a source tree."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    failed = False
    for name, value, limit in counts(root):
        failed |= value > limit
        print(f"{name:<40} {value:7.1f}  limit {limit:g}")
    sys.exit(int(failed))


def counts(root: Path) -> Iterator[tuple[str, float, float]]:
    """Name, rate and limit of every rule for a source tree."""
    with without_collections():  # which take most of the time, and nodes are no garbage
        sources = [Source(path.read_text(encoding="utf-8")) for path in python_files(root)]
    functions = [locals_of(node) for source in sources for node in source.functions()]
    for local in LOCALS:
        users = sum(local in names for names in functions)
        yield f"local `{local}` per 1,000 functions", 1e3 * users / len(functions), FOUND_LIMIT
    text = "\n".join(prose(root, sources))
    words = len(re.findall(r"[A-Za-z][A-Za-z'-]*", text))
    for rule in RULES:
        hits = len(re.findall(rf"\b(?:{rule.pattern})\b", text, re.IGNORECASE))
        yield f"{rule.name} per 10,000 words", 1e4 * hits / words, rule.limit


def python_files(root: Path) -> Iterator[Path]:
    """Python sources outside tests/, without the links in src/vlpress."""
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            if not any(parent.is_symlink() for parent in (path, *path.parents)):
                yield path


class Source:
    """A Python file, parsed once: parsing and walking take most of the time."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._nodes = [
            node
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Expr)
        ]

    def functions(self) -> Iterator[ast.AST]:
        """Functions and methods."""
        return (node for node in self._nodes if not isinstance(node, ast.Expr))

    def docstrings(self) -> Iterator[str]:
        """String statements: docstrings of modules, classes, functions and attributes."""
        for node in self._nodes:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                if isinstance(node.value.value, str):
                    yield without_code(node.value.value)

    def comments(self) -> Iterator[str]:
        """Comments, with their hashes."""
        for token in STRING_OR_COMMENT.findall(self._text):
            if token.startswith("#"):
                yield token


def locals_of(function: ast.AST) -> set[str]:
    """Names that a function assigns to, its parameters included."""
    names = set()
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def prose(root: Path, sources: list[Source]) -> Iterator[str]:
    """Docstrings, comments and Markdown; code in backticks and quotations are left out."""
    for source in sources:
        yield from source.docstrings()
        yield from source.comments()
    for path in sorted((root / "quant" / "kernels" / "cpu").glob("*.[ch]*")):
        yield from re.findall(r"//.*", path.read_text(encoding="utf-8"))
    for path in sorted([*root.glob("*.md"), *(root / "docs").glob("*.md")]):
        yield without_code(path.read_text(encoding="utf-8"))


def without_code(text: str) -> str:
    """Text without code blocks and code spans."""
    return re.sub(r"`[^`\n]+`", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


if __name__ == "__main__":
    main()
