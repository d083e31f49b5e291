"""Imports between the packages point one way and are free of cycles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import paths
import pytest

from vlpress.common.imports import without_collections

LAYERS = ("common", "synthetic", "model", "calib", "quant", "bench", "eval", "cli")
"""From the lowest to the highest; a package imports from itself and from lower ones only."""


def package_folder(name: str) -> Path:
    top = paths.ROOT / name
    return top if top.is_dir() else paths.ROOT / "src" / "vlpress" / name


@cache
def parsed(path: Path) -> ast.Module:
    with without_collections():
        return ast.parse(path.read_text(encoding="utf-8"))


def imported_packages(path: Path, depth: int) -> Iterator[tuple[int, str]]:
    """Line and package of every relative import that leaves the file's own package."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.level == depth + 1:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                yield node.lineno, name.split(".")[0]


@pytest.mark.parametrize("package", LAYERS)
def test_package_imports_from_lower_ones_only(package: str) -> None:
    folder = package_folder(package)
    higher = LAYERS[LAYERS.index(package) + 1 :]
    wrong = [
        f"{path.relative_to(paths.ROOT)}:{line} imports {name}"
        for path in sorted(folder.rglob("*.py"))
        for line, name in imported_packages(path, len(path.relative_to(folder).parts))
        if name in higher
    ]
    assert not wrong


POSIX_ONLY = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}


def test_no_module_needs_posix_to_be_imported() -> None:
    wrong = [
        f"{path.relative_to(paths.ROOT)}: {name}"
        for package in LAYERS
        for path in sorted(package_folder(package).rglob("*.py"))
        for node in parsed(path).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None), *(alias.name for alias in node.names)]
        if name in POSIX_ONLY
    ]
    assert not wrong


def test_package_has_at_most_14_files() -> None:
    folders = {
        path.parent for name in ("quant", "eval") for path in (paths.ROOT / name).rglob("*.py")
    }
    crowded = {str(f.relative_to(paths.ROOT)) for f in folders if len(list(f.glob("*.py"))) > 14}
    assert not crowded


def loaded_with(module: str) -> set[str]:
    """Absolute names of everything that the import of a module of vlpress imports."""
    names: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        top, *rest = name.split(".")
        stem = package_folder(top).joinpath(*rest)
        path = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
        if name in names or not path.is_file():
            continue
        names.add(name)
        package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
        for node in parsed(path).body:
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(str(node.module))
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
                # A name may be a module of the package, which is imported as well.
                pending += [base, *(f"{base}.{alias.name}" for alias in node.names)]
                pending += [".".join(base.split(".")[:n]) for n in range(1, base.count(".") + 1)]
    return names


def test_verbs_load_slow_libraries_when_they_need_them() -> None:
    slow = {"datasets", "huggingface_hub", "scipy", "scipy.stats", "transformers"}
    slow |= {"matplotlib", "matplotlib.figure"}
    assert not slow & loaded_with("eval.planning.run_plan")
    assert not slow & loaded_with("quant.generate")
    assert not slow & loaded_with("eval.run")
    assert {"torch", "scipy.special"} <= loaded_with("eval.run")
    assert "torch" not in loaded_with("eval.own.split")
