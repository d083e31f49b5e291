"""Longest answers in tokens: the defaults, and the values of `--max-new-tokens`.

A limit counts all tokens that a model writes, those of a reasoning included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..registry import Benchmark
from .reasoning import find_rule


@dataclass(frozen=True)
class Defaults:
    """Limits of one kind of benchmark files."""

    plain: int
    reasoning: int
    """Of models that reason before they answer."""


PUBLISHED = Defaults(plain=2048, reasoning=8192)
"""2048 is the cap of the published scores of Qwen2-VL and Qwen2.5-VL. The one for reasoning is a
compromise: a model that is caught in a loop always uses it up."""
DRAWINGS = Defaults(plain=64, reasoning=1024)
"""Far above the longest gold answer of the packaged files."""


def default_limit(rule: str, *, synthetic: bool) -> int:
    """Return the limit of a benchmark for which none is given.

    Args:
        rule: a name in `reasoning.RULES`.
        synthetic: whether the file is a packaged one.

    Raises:
        ValueError: the rule is unknown.
    """
    limits = DRAWINGS if synthetic else PUBLISHED
    return limits.reasoning if find_rule(rule).has_tags else limits.plain


def parse_limits(words: Sequence[str]) -> dict[str, int]:
    """Read the values of `--max-new-tokens`: limits by the lower-case name, "" for all benchmarks.

    Args:
        words: `N` or `NAME=N`, as `BenchmarkOptions` allows them.

    Raises:
        ValueError: a name is repeated, or N alone is.
    """
    limits: dict[str, int] = {}
    for word in words:
        name, _, number = word.rpartition("=")
        if name.lower() in limits:
            what = f"{name}=N" if name else "N for all benchmarks"
            raise ValueError(f"--max-new-tokens has {what} twice; give it once")
        limits[name.lower()] = int(number)
    return limits


def find_limit(limits: Mapping[str, int], benchmark: Benchmark) -> int | None:
    """Return the limit of a benchmark: by its name, else by its kind, else that of all.

    Args:
        limits: see `parse_limits`.
        benchmark: the benchmark.

    Returns:
        None if none of them is given.
    """
    names = (benchmark.name.lower(), benchmark.kind, "")
    return next((limits[name] for name in names if name in limits), None)


def check_limits(limits: Mapping[str, int], benchmarks: Sequence[Benchmark]) -> None:
    """Check that every named limit is of a benchmark.

    Args:
        limits: see `parse_limits`.
        benchmarks: all benchmarks of an evaluation.

    Raises:
        ValueError: a name is neither that of a benchmark nor that of its kind.
    """
    known = {"": None} | {n: None for b in benchmarks for n in (b.name.lower(), b.kind)}
    if unknown := [name for name in limits if name not in known]:
        allowed = dict.fromkeys(n for b in benchmarks for n in (b.name, b.kind))
        raise ValueError(
            f"--max-new-tokens {unknown[0]}={limits[unknown[0]]}: no benchmark is named "
            f"{unknown[0]}; give one of {', '.join(allowed)}, or N alone for all"
        )
