"""Which two runs may be compared: the same questions always, the same setup unless told otherwise.

A run in this process and one by a server, or runs by two kinds of server, differ in more than the
model: kernels, dtype, batches, and what a client cannot see. They are compared on request only,
and then every difference is a note in the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..common.differences import differences
from .fingerprint import setup_differences
from .results import StoredRun, StoredTask

HERE = {"kind": "vlpress"}  # the engine of runs in this process, whose fingerprint names none
STATED = (
    ("pixels", "min"),
    ("pixels", "max"),
    ("generation", "temperature"),
    ("generation", "repetition_penalty"),
)
ENGINE = "engine."  # its parts are named in a note of their own
SHOWN = 6  # differences that an error names


def check_comparable(
    base: StoredRun, candidate: StoredRun, *, across_engines: bool = False
) -> list[str]:
    """Demand the same benchmarks, questions, prompts, caps and rules, and the same setup.

    Between engines the setup cannot be the same. With `across_engines` what both state of it must
    agree (pixel bounds, temperature, repetition penalty), and the rest is returned.

    Args:
        base: evaluation of the original.
        candidate: evaluation of the candidate.
        across_engines: whether the two may have been answered by different engines.

    Returns:
        What the two do not share, for the report; empty for runs of one engine.

    Raises:
        ValueError: they differ; the message says in what.
    """
    if set(base.tasks) != set(candidate.tasks):
        raise ValueError(
            f"{base.path} holds {', '.join(sorted(base.tasks)) or 'nothing'} and "
            f"{candidate.path} {', '.join(sorted(candidate.tasks)) or 'nothing'}; "
            "evaluate both on the same benchmarks"
        )
    changed = setup_differences(base.fingerprint, candidate.fingerprint)
    lengths = _length_differences(base, candidate)
    engines = engine_name(base), engine_name(candidate)
    if engines[0] == engines[1]:
        _refuse(base, candidate, changed + _question_differences(base, candidate) + lengths)
        return []
    stated = _stated_differences(base, candidate)
    _refuse(base, candidate, _question_differences(base, candidate) + stated)
    if not across_engines:
        raise ValueError(
            f"{base.path} was answered by {engines[0]} and {candidate.path} by {engines[1]}, which "
            "differ in more than the model; evaluate both by one engine, or compare all the same "
            "with --across-engines and read the report's notes"
        )
    return [
        f"the base was answered by {engines[0]}, the candidate by {engines[1]}: a difference may "
        "come from the engine",
        f"setups, base -> candidate: {'; '.join(p for p in changed if not p.startswith(ENGINE))}",
        *(lengths or [_length_agreement(base, candidate)]),
    ]


def engine_name(run: StoredRun) -> str:
    """What answered, for people."""
    engine: Mapping[str, Any] = run.fingerprint.get("engine", HERE)
    if engine == HERE:
        return "vlpress"
    return f"{engine.get('software') or 'an unnamed server'} ({engine['kind']})"


def _refuse(base: StoredRun, candidate: StoredRun, changed: list[str]) -> None:
    if changed:
        shown = "; ".join(changed[:SHOWN]) + ("; ..." if len(changed) > SHOWN else "")
        raise ValueError(
            f"{base.path} and {candidate.path} were evaluated with different setups ({shown}); "
            "evaluate one of them again with the other's settings"
        )


def _question_differences(base: StoredRun, candidate: StoredRun) -> list[str]:
    changed = []
    for name, task in base.tasks.items():
        other = candidate.tasks[name]
        parts = differences(task.info["fingerprint"], other.info["fingerprint"])
        changed += [f"{name}.{part}" for part in parts]
        if not parts and task.questions != other.questions:
            changed.append(f"{name}: the stored questions")
    return changed


def _stated_differences(base: StoredRun, candidate: StoredRun) -> list[str]:
    """What both sides state and differs; None is a server's own choice, which it does not tell."""
    found = []
    for section, key in STATED:
        left, right = (run.fingerprint.get(section, {}).get(key) for run in (base, candidate))
        if left is not None and right is not None and left != right:
            found.append(f"{section}.{key}: {left} -> {right}")
    return found


def _length_differences(base: StoredRun, candidate: StoredRun) -> list[str]:
    """Prompts that are longer on one side: another chat template or pixel budget was used."""
    found = []
    for name, task in base.tasks.items():
        known = _known_lengths(task, candidate.tasks[name])
        unlike = [key for key, (left, right) in known.items() if left != right]
        if unlike:
            left, right = known[unlike[0]]
            found.append(
                f"{name}: {len(unlike)} of {len(known)} prompts differ in length (first: row "
                f"{unlike[0]}, {left} -> {right} tokens), so the chat template or the pixels do"
            )
    return found


def _length_agreement(base: StoredRun, candidate: StoredRun) -> str:
    pairs = [(task, candidate.tasks[name]) for name, task in base.tasks.items()]
    known = sum(len(_known_lengths(*pair)) for pair in pairs)
    total = sum(len(task.asked) for task in base.tasks.values())
    if not known:
        return "how long the prompts were is not known on both sides"
    return f"the prompts of {known} of {total} rows have the same number of tokens on both sides"


def _known_lengths(task: StoredTask, other: StoredTask) -> dict[str, tuple[int, int]]:
    """Prompt tokens on both sides by item, where both say so."""
    found = {}
    for key, ours in task.predictions.items():
        theirs = other.predictions.get(key)
        if theirs and ours.prompt_tokens is not None and theirs.prompt_tokens is not None:
            found[key] = ours.prompt_tokens, theirs.prompt_tokens
    return found
