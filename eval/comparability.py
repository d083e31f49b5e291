"""Checks that two runs are comparable: always the same questions, by default the same setup.

A local run and a served one, or runs by two kinds of server, differ in more than the model:
kernels, dtype, batches, and settings that a client cannot see. They are compared on request only,
and then every difference is a note in the report. Numbers of CPU threads are noted too: they may
change a result in its last digits, and an extended evaluation can have several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.differences import differences
from .fidelity.perplexity import FILE as TEXT_FILE
from .fingerprint import MAX_PIXELS, PIXELS, VOCABULARY, largest_area, setup_differences
from .results import StoredRun, StoredTask, read_run

LOCAL_ENGINE = {"kind": "vlpress"}
"""Engine of local runs, whose fingerprint names none."""
SHARED_KEYS = (
    (PIXELS, "min"),
    (PIXELS, MAX_PIXELS),
    ("generation", "temperature"),
    ("generation", "repetition_penalty"),
    ("generation", "top_p"),
    ("generation", "top_k"),
    ("generation", "samples"),
)
"""Parts of the setup that both engines record."""
ENGINE = "engine."  # prefix of parts that have a note of their own
SHOWN = 6  # differences named in an error
SIZE_TOLERANCE = 0.05
"""Largest difference of sizes, relative to the smallest."""


def check_comparable(
    base: StoredRun,
    candidate: StoredRun,
    *,
    across_engines: bool = False,
    across_pixels: bool = False,
) -> list[str]:
    """Require the same benchmarks, questions, prompts, caps and rules, and the same setup.

    Between engines the setup cannot be the same. With `across_engines` the parts that both record
    must agree (pixel bounds, settings of the decoding), and the others are returned.

    Args:
        base: evaluation of the original.
        candidate: evaluation of the candidate.
        across_engines: whether the two may be by different engines.
        across_pixels: whether the largest area of an image may differ, and with it the lengths of
            prompts.

    Returns:
        Differences for the report; for runs of one engine, those in the largest area of an image
        and in the number of threads.

    Raises:
        ValueError: the runs differ; the message names the differences.
    """
    if set(base.tasks) != set(candidate.tasks):
        raise ValueError(
            f"{base.path} holds {', '.join(sorted(base.tasks)) or 'nothing'} and "
            f"{candidate.path} {', '.join(sorted(candidate.tasks)) or 'nothing'}; "
            "evaluate both on the same benchmarks"
        )
    changed = setup_differences(
        base.fingerprint, candidate.fingerprint, across_pixels=across_pixels
    )
    areas = area_notes(base, candidate) if across_pixels else []
    pruned = vocabulary_notes(base, candidate)
    lengths = [] if areas or pruned else _length_differences(base, candidate)
    engines = describe_engine(base), describe_engine(candidate)
    if engines[0] == engines[1]:
        _refuse(base, candidate, changed + _question_differences(base, candidate) + lengths)
        return [*areas, *pruned, *thread_notes(base, candidate)]
    shared = _shared_differences(base, candidate, across_pixels=across_pixels)
    _refuse(base, candidate, _question_differences(base, candidate) + shared)
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
        *(areas or pruned or lengths or [_length_agreement(base, candidate)]),
    ]


def area_notes(base: StoredRun, candidate: StoredRun) -> list[str]:
    """Return a note if images were scaled to different largest areas, as far as both are known."""
    first, second = largest_area(base.fingerprint), largest_area(candidate.fingerprint)
    if first == second or None in (first, second):
        return []
    return [
        f"images were scaled to at most {second} pixels for the candidate and {first} for the "
        "base: a difference may come from the size of the images"
    ]


def vocabulary_notes(base: StoredRun, candidate: StoredRun) -> list[str]:
    """Return a note if the vocabulary of one of the models was pruned, or of both differently."""
    vocabularies = [run.fingerprint.get(VOCABULARY) for run in (base, candidate)]
    if vocabularies[0] == vocabularies[1]:
        return []
    sizes = [f"{v['kept']} of {v['rows']}" if v else "all" for v in vocabularies]
    pairs = [
        pair
        for name, task in base.tasks.items()
        for pair in _prompt_lengths(task, candidate.tasks[name]).values()
    ]
    changed = sum(left != right for left, right in pairs)
    texts = (base.path / TEXT_FILE).is_file() and (candidate.path / TEXT_FILE).is_file()
    return [
        f"the vocabulary is pruned, rows of base -> candidate: {sizes[0]} -> {sizes[1]}; {changed} "
        f"of {len(pairs)} prompts differ in length"
        + "; perplexities are of other tokens and are not compared"
        * texts
    ]


def thread_notes(base: StoredRun, candidate: StoredRun) -> list[str]:
    """Return a note if not all answers were computed with the same number of CPU threads."""
    counts: Counter[tuple[int | None, int | None]] = Counter()
    for name, task in base.tasks.items():
        other = candidate.tasks[name].predictions
        shared = task.predictions.keys() & other.keys()
        counts.update((task.predictions[key].threads, other[key].threads) for key in shared)
    counts = Counter({pair: n for pair, n in counts.items() if None not in pair})
    if len(counts) < 2 and all(first == second for first, second in counts):
        return []
    parts = [
        f"{n} questions with {first}"
        + (f" for the base and {second} for the candidate" if first != second else "")
        for (first, second), n in sorted(counts.items(), key=str)
    ]
    return [
        f"the number of CPU threads was not always the same: {', '.join(parts)}; it may change a "
        "result in its last digits, as the batch size does"
    ]


def describe_engine(run: StoredRun) -> str:
    """Return the name of a run's engine for messages."""
    engine: Mapping[str, Any] = run.fingerprint.get("engine", LOCAL_ENGINE)
    if engine == LOCAL_ENGINE:
        return "vlpress"
    return f"{engine.get('software') or 'an unnamed server'} ({engine['kind']})"


def _refuse(base: StoredRun, candidate: StoredRun, changed: list[str]) -> None:
    if changed:
        shown = "; ".join(changed[:SHOWN]) + ("; ..." if len(changed) > SHOWN else "")
        area = ", or compare sizes of images with --across-pixels" * bool(
            area_notes(base, candidate)
        )
        raise ValueError(
            f"{base.path} and {candidate.path} were evaluated with different setups ({shown}); "
            f"evaluate one of them again with the other's settings{area}"
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


def _shared_differences(base: StoredRun, candidate: StoredRun, *, across_pixels: bool) -> list[str]:
    """Describe differences in `SHARED_KEYS`; None is a server's default, which is unknown."""
    changed = []
    for section, key in SHARED_KEYS:
        if across_pixels and key == MAX_PIXELS:
            continue
        left, right = (run.fingerprint.get(section, {}).get(key) for run in (base, candidate))
        if left is not None and right is not None and left != right:
            changed.append(f"{section}.{key}: {left} -> {right}")
    return changed


def _length_differences(base: StoredRun, candidate: StoredRun) -> list[str]:
    """Describe differences in prompt length: the chat template or the pixel budget differs."""
    changed = []
    for name, task in base.tasks.items():
        lengths = _prompt_lengths(task, candidate.tasks[name])
        unequal = [key for key, (left, right) in lengths.items() if left != right]
        if unequal:
            left, right = lengths[unequal[0]]
            changed.append(
                f"{name}: {len(unequal)} of {len(lengths)} prompts differ in length (first: row "
                f"{unequal[0]}, {left} -> {right} tokens), so the chat template or the pixels do"
            )
    return changed


def _length_agreement(base: StoredRun, candidate: StoredRun) -> str:
    pairs = [(task, candidate.tasks[name]) for name, task in base.tasks.items()]
    counted = sum(len(_prompt_lengths(*pair)) for pair in pairs)
    total = sum(len(task.sound_items) for task in base.tasks.values())
    if not counted:
        return "how long the prompts were is not known on both sides"
    return f"the prompts of {counted} of {total} rows have the same number of tokens on both sides"


def _prompt_lengths(task: StoredTask, other: StoredTask) -> dict[str, tuple[int, int]]:
    """Return the prompt tokens of both runs by item, for items where both record them."""
    lengths = {}
    for key, first in task.predictions.items():
        second = other.predictions.get(key)
        if second and first.prompt_tokens is not None and second.prompt_tokens is not None:
            lengths[key] = first.prompt_tokens, second.prompt_tokens
    return lengths


def check_same_bytes(candidates: Sequence[Path]) -> None:
    """Check that the weight files of several candidates have equal sizes within `SIZE_TOLERANCE`.

    Args:
        candidates: evaluation folders.

    Raises:
        ValueError: there is one candidate only, a size is unknown, or two sizes differ by more.
    """
    if len(candidates) < 2:
        raise ValueError(
            "--same-bytes compares candidates with each other, and one is given; give two or more, "
            "or leave it out"
        )
    sizes = {path: read_run(path).info["model"]["bytes"] for path in candidates}
    for path, size in sizes.items():
        if size is None:
            raise ValueError(
                f"{path} was answered by a server, which does not report the model's size; "
                "leave --same-bytes out"
            )
    smallest, largest = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    if sizes[largest] > (1 + SIZE_TOLERANCE) * sizes[smallest]:
        excess = sizes[largest] / sizes[smallest] - 1
        raise ValueError(
            f"{largest} has {sizes[largest]:,} bytes, {100 * excess:.1f} % more than {smallest} "
            f"with {sizes[smallest]:,}; allowed with --same-bytes: {100 * SIZE_TOLERANCE:.0f} %"
        )
