"""Candidates with fewer weights than the base, beside quantization and chance at the same bytes.

What pruning finds is an architecture: a removal of channels, layers or tokens pays only if it is
better than what the same bytes give without it, and better than a random removal ("Rethinking the
Value of Network Pruning", Liu et al., arXiv 1810.05270). Every such candidate is set beside the
largest candidate that only quantizes the base and has at most its bytes, and, if its record says
that it chose what to remove, beside one that chose at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...results import StoredRun, read_quantization

SAME = 0.01
"""Relative difference up to which two candidates have the same bytes."""
QUANTIZED, RANDOM = "quantization alone", "random choice"
CHOICES = ("wanda", "magnitude", "influence")
"""Scores of the preparation shrink that choose what is removed."""


@dataclass(frozen=True)
class _Candidate:
    name: str
    bytes: int
    is_smaller: bool
    scores: frozenset[str]
    """Scores by which its record says that parts were removed."""


def same_bytes_section(
    base: StoredRun, runs: Mapping[str, StoredRun], pairs: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Compare each candidate with fewer weights than the base with others of its bytes.

    Args:
        base: the original model.
        runs: the candidates by name.
        pairs: of `comparison.json`.

    Returns:
        For each such candidate one entry per `kind` of the other one: `candidate` and `against`
        (None: there is none), their bytes, the benchmarks with the paired differences (candidate
        minus the other), those in `better_on` and `worse_on` by these, and `warning` (None if it is
        better on all).
        Candidates of unknown size or number of weights are left out.
    """
    known = [c for name, run in runs.items() if (c := _candidate(name, base, run)) is not None]
    plain = [c for c in known if not c.is_smaller]
    entries = []
    for candidate in known:
        if not candidate.is_smaller or candidate.scores == {"random"}:
            continue
        fitting = [other for other in plain if other.bytes <= candidate.bytes]
        nearest = max(fitting, key=lambda other: other.bytes, default=None)
        entries.append(_entry(candidate, nearest, QUANTIZED, pairs))
        if candidate.scores.intersection(CHOICES):
            random = [c for c in known if c.scores == {"random"} and _alike(c, candidate)]
            entries.append(_entry(candidate, next(iter(random), None), RANDOM, pairs))
    return entries


def _candidate(name: str, base: StoredRun, run: StoredRun) -> _Candidate | None:
    weights, of_base = (side.info["model"]["weights"] for side in (run, base))
    size = run.info["model"]["bytes"]
    if size is None or weights is None or of_base is None:
        return None
    record = read_quantization(run) or {}
    scores = {step["score"] for step in record.get("preparations", ()) if step.get("score")}
    return _Candidate(name, size, weights < of_base, frozenset(scores))


def _alike(one: _Candidate, other: _Candidate) -> bool:
    return abs(one.bytes - other.bytes) <= SAME * max(one.bytes, other.bytes)


def _entry(
    candidate: _Candidate,
    other: _Candidate | None,
    kind: str,
    pairs: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    benchmarks = {} if other is None else _differences(other.name, candidate.name, pairs)
    better = [name for name, entry in benchmarks.items() if _direction(entry) > 0]
    worse = [name for name, entry in benchmarks.items() if _direction(entry) < 0]
    return {
        "candidate": candidate.name,
        "bytes": candidate.bytes,
        "kind": kind,
        "against": other and other.name,
        "against_bytes": other and other.bytes,
        "benchmarks": benchmarks,
        "better_on": better,
        "worse_on": worse,
        "warning": _warning(
            candidate, other, kind, worse, [b for b in benchmarks if b not in (*better, *worse)]
        ),
    }


def _differences(
    first: str, second: str, pairs: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Differences second minus first on each benchmark, whichever way the pair was compared."""
    for pair in pairs:
        names, benchmarks = (pair["first"], pair["second"]), pair["benchmarks"]
        if names == (first, second):
            return {name: _of(entry, 1) for name, entry in benchmarks.items()}
        if names == (second, first):
            return {name: _of(entry, -1) for name, entry in benchmarks.items()}
    raise ValueError(f"no differences between {first} and {second}; compare both with one base")


def _of(entry: Mapping[str, Any], sign: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key in ("delta", "kl_delta"):
        values[key] = None if entry[key] is None else sign * entry[key] + 0.0  # no negative zero
    for key in ("ci95", "kl_delta_ci95"):
        bounds = entry[key]
        values[key] = None if bounds is None else sorted(sign * bound for bound in bounds)
    return values


def _direction(entry: Mapping[str, Any]) -> int:
    """1 if an interval shows that the candidate is better, -1 if the other one is, else 0.

    The interval is that of the divergences, or else of the scores.
    """
    low, high = entry["ci95"]
    if entry["kl_delta_ci95"] is not None:
        low, high = (-bound for bound in reversed(entry["kl_delta_ci95"]))
    return int(low > 0) - int(high < 0)


def _warning(
    candidate: _Candidate,
    other: _Candidate | None,
    kind: str,
    worse: Sequence[str],
    undecided: Sequence[str],
) -> str | None:
    if other is None and kind == QUANTIZED:
        return (
            f"{candidate.name} has fewer weights than the base, and no candidate quantizes the "
            "base to at most its bytes: add one, since the removal pays only if it is better"
        )
    if other is None:
        return (
            f"{candidate.name} has no candidate beside it that removes as much at random "
            '(score = "random"): add one as its control'
        )
    texts = [f"better than {candidate.name} on {', '.join(worse)}"] if worse else []
    if undecided:
        texts.append(f"not shown to be worse than {candidate.name} on {', '.join(undecided)}")
    ratio = f"{other.bytes / candidate.bytes:.2f}x its bytes"
    return f"{kind} ({other.name}, {ratio}) is {', and '.join(texts)}" if texts else None
