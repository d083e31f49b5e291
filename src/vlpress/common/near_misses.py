"""Suggestions for mistyped names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path

CUTOFF = 0.75  # ratio of equal letters, see `difflib`
MOST = 3  # suggestions
TYPO = 2  # letters that a typing error changes at most


def near_misses(name: str, allowed: Iterable[str]) -> list[str]:
    """Return the allowed names that resemble a name, the closest first, at most `MOST`.

    Letter case is ignored.
    """
    by_key = {each.casefold(): each for each in allowed}
    keys = get_close_matches(name.casefold(), by_key, n=MOST, cutoff=CUTOFF)
    return [by_key[key] for key in keys]


def did_you_mean(names: Sequence[str]) -> str:
    """Return ` did you mean a, b or c?` to put into a message; empty without a name."""
    if not names:
        return ""
    *others, last = names
    return f" did you mean {' or '.join([', '.join(others), last] if others else [last])}?"


def near_paths(path: Path, *, folders: bool = False) -> list[str]:
    """Return the files and folders next to a missing one that resemble it, written like its path.

    Args:
        path: of a file or folder that does not exist.
        folders: whether files are left out.
    """
    try:
        others = sorted(path.expanduser().parent.iterdir())
    except OSError:  # no such folder either, or not readable
        return []
    names = [each.name for each in others if each.is_dir() or not folders]
    return [str(path.with_name(name)) for name in near_misses(path.name, names)]


def is_typo(name: str, allowed: str) -> bool:
    """Whether a name differs from an allowed one by a typing error: `TYPO` letters, no digits.

    Names with other digits are other things: Qwen2.5-VL-3B is no typing error of Qwen2.5-VL-7B.
    """
    if [c for c in name if c.isdigit()] != [c for c in allowed if c.isdigit()]:
        return False
    changes = SequenceMatcher(None, name, allowed, autojunk=False).get_opcodes()
    return sum(max(b - a, d - c) for kind, a, b, c, d in changes if kind != "equal") <= TYPO
