"""What a benchmark is to the rest of the room: items to answer and a way to score answers.

Scoring reads only `fields` (plain JSON), so a run folder that stores them can be scored again
without the benchmark file. A row that is broken (`table`) has fields but is not asked. The unit
of analysis is what counts once in the headline number: a circular group in MMBench, a row
elsewhere.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .resolution import Bounds

Fields = Mapping[str, Any]
Message = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One question to put to the model."""

    id: str
    messages: list[Message]  # chat form; pictures as `pictures.Picture`
    max_new_tokens: int
    fields: Fields  # JSON values: unit, question, choices, answer, category, group, ...
    pixels: Bounds | None = None  # of its pictures; None: what the processor says


@dataclass(frozen=True)
class Unit:
    """What counts once: scored right or wrong as a whole."""

    id: str
    correct: bool
    category: str
    group: str  # coarse category
    rows: tuple[str, ...]  # ids of its items
    answers: tuple[str, ...]  # what each row was taken to say, comparable between models


@dataclass(frozen=True)
class TaskScore:
    """A benchmark's outcome; `percent` is the headline."""

    metric: str
    units: tuple[Unit, ...]
    n_rows: int  # broken ones included
    broken: int  # rows that cannot be asked or scored; they count as wrong
    parse_failures: int  # rows whose answer names no option by the rules
    refusals: int  # rows that decline to answer
    extra: Mapping[str, float]  # further metrics in percent
    table: Mapping[str, Any]  # the benchmark's customary table

    @property
    def percent(self) -> float:
        """Units scored right, in percent of all units."""
        return percent(unit.correct for unit in self.units)


Scorer = Callable[[Sequence[Fields], Mapping[str, str], str], TaskScore]


@dataclass(frozen=True)
class Task:
    """A benchmark opened for evaluation; see `broken.mark_broken` for its broken rows."""

    name: str  # key in reports
    kind: str  # which scorer applies: mmbench, ocrbench, mmmu or own
    metric: str
    items: tuple[Item, ...]  # to ask
    fields: tuple[Fields, ...]  # to score: those of all items and of the broken rows
    profile: str  # extraction rules
    synthetic: bool  # drawn pictures, not the published benchmark
    fingerprint: Mapping[str, Any]  # everything that changes prompts, pictures or scores
    scorer: Scorer = field(repr=False)
    source: str = ""  # name of the file, for messages
    deviations: tuple[str, ...] = ()  # from the published file
    notes: tuple[str, ...] = ()  # for the report: the deviations, and which rows are broken

    def score(self, predictions: Mapping[str, str]) -> TaskScore:
        """Score one answer per item (item id -> text).

        Raises:
            ValueError: an item has no answer.
        """
        require_all(self.name, self.fields, predictions)
        return self.scorer(self.fields, predictions, self.profile)


def is_broken(fields: Fields) -> bool:
    """Whether a row cannot be asked or scored."""
    return bool(fields.get("fault"))


def with_fault(fields: Fields, fault: str | None) -> Fields:
    """The fields of a row with what is wrong with it, and on which line if the row is one."""
    if not fault:
        return fields
    place = f"line {fields['line']}: " if fields.get("line") else ""
    return {**fields, "fault": place + fault.removeprefix(place)}


def require_all(name: str, fields: Iterable[Fields], predictions: Collection[str]) -> None:
    """Refuse to score an unfinished run: leaving rows out would shrink the denominator.

    Args:
        name: of the task.
        fields: of all its items.
        predictions: ids of the answered ones.

    Raises:
        ValueError: an item has no prediction.
    """
    ids = [f["id"] for f in fields if not is_broken(f)]
    missing = [i for i in ids if i not in predictions]
    if missing:
        raise ValueError(
            f"{name}: {len(missing)} of {len(ids)} items have no prediction "
            f"(first: {missing[0]}); run the evaluation again to finish it"
        )


def percent(hits: Iterable[bool]) -> float:
    """Share of true values in percent; 0 for none at all."""
    values = [bool(hit) for hit in hits]
    return 100.0 * sum(values) / len(values) if values else 0.0


def by_unit(fields: Iterable[Fields]) -> dict[str, list[Fields]]:
    """Group items by their unit, in order of first appearance."""
    units: dict[str, list[Fields]] = defaultdict(list)
    for item in fields:
        units[item["unit"]].append(item)
    return dict(units)


def sample_units(units: Mapping[str, str], limit: int, seed: int) -> set[str]:
    """Choose `limit` units, spread over categories in proportion to their size.

    Args:
        units: unit id -> category.
        limit: how many units to keep; all of them when there are no more than that.
        seed: same units, limit and seed give the same choice.

    Raises:
        ValueError: `limit` is not positive.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}; give a positive number of questions")
    if limit >= len(units):
        return set(units)
    pools: dict[str, list[str]] = defaultdict(list)
    for unit, category in units.items():
        pools[category].append(unit)
    rng = random.Random(seed)
    for category in sorted(pools):
        rng.shuffle(pools[category])
    exact = {c: limit * len(pool) / len(units) for c, pool in pools.items()}
    quota = {c: int(share) for c, share in exact.items()}
    # Largest remainder; ties by a seeded draw, so that no category is favoured by its name.
    order = sorted(pools)
    rng.shuffle(order)
    order.sort(key=lambda c: quota[c] - exact[c])
    for category in order[: limit - sum(quota.values())]:
        quota[category] += 1
    return {unit for c, pool in pools.items() for unit in pool[: quota[c]]}


_SHORT = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}


def accuracy_table(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Accuracy per split: overall, per coarse category, per category, as fractions.

    Args:
        rows: mappings with `hit` (0 or 1) and, where known, `split`, `l2-category`, `category`.

    Returns:
        Split -> {"Overall": ..., coarse categories by customary short name, categories}.
    """
    splits: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        splits[row.get("split") or "none"].append(row)
    table = {}
    for split in sorted(splits):
        entry = {"Overall": _mean_hit(splits[split])}
        for column in ("l2-category", "category"):
            names = sorted({row[column] for row in splits[split] if row.get(column)})
            for name in names:
                chosen = [row for row in splits[split] if row.get(column) == name]
                entry[_SHORT.get(name, name)] = _mean_hit(chosen)
        table[split] = entry
    return table


def _mean_hit(rows: Sequence[Mapping[str, Any]]) -> float:
    return sum(int(row["hit"]) for row in rows) / len(rows)
