"""Items, tasks and scores: the interface between benchmarks and the rest of the evaluation.

Scoring reads only `fields` (JSON values), so that a run folder can be scored again without the
benchmark file. A broken row (see `files.rows`) has fields but no item. The unit of analysis counts
once in the headline score: a circular group in MMBench, a row elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .generated.reasoning import NONE
from .resolution import PixelBounds

if TYPE_CHECKING:
    from .files.image_store import StoredImage
    from .files.rows import Row

INPUT_SIZE = "input_size"
"""Key of an item's fields: width and height at which the model sees its image, in pixels."""

Fields = Mapping[str, Any]
Message = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One question for the model."""

    id: str
    messages: list[Message]  # chat form; images are `StoredImage` handles
    max_new_tokens: int
    fields: Fields  # JSON values: unit, question, choices, answer, category, group, ...
    pixels: PixelBounds | None = None  # bounds of the images' area; None: the processor's
    reasoning: str = NONE  # rule that separates reasoning from answer, a name of `reasoning.RULES`
    sample: int | None = None  # number of the sampled answer to it, from 1; None: greedy
    seed: int | None = None  # of the sampled answer

    @property
    def key(self) -> str:
        """Key of the answer to it, see `answer_key`."""
        return answer_key(self.id, self.sample)

    @property
    def images(self) -> list[StoredImage]:
        """The images in order of appearance."""
        contents = (message["content"] for message in self.messages)
        parts = (part for content in contents if not isinstance(content, str) for part in content)
        return [part["image"] for part in parts if part["type"] == "image"]

    @cached_property
    def digest(self) -> str:
        """Digest of the prompt: texts, encoded images and their decoding, bounds, and the cap."""
        pixels = None if self.pixels is None else asdict(self.pixels)
        return hash_values([list(map(_describe, self.messages)), self.max_new_tokens, pixels])


@dataclass(frozen=True)
class Unit:
    """The unit of analysis: scored as a whole, right or wrong or with a part of a point."""

    id: str
    correct: bool
    category: str
    group: str  # coarse category
    rows: tuple[str, ...]  # ids of its items
    answers: tuple[str, ...]  # normalized answer of each row, comparable between models
    points: float | None = None  # in [0, 1], positive if it is right; None: 1 or 0
    hits: tuple[bool, ...] = ()  # of sampled answers: whether it is right in each sample
    shown: int = 0  # index of the sample that reports show

    @property
    def right_share(self) -> float:
        """Share of the samples in which it is right; without samples 1 or 0."""
        return sum(self.hits) / len(self.hits) if self.hits else float(self.correct)

    @property
    def value(self) -> float:
        """Its part of the score, in [0, 1]."""
        return float(self.correct) if self.points is None else self.points


@dataclass(frozen=True)
class TaskScore:
    """Score of a benchmark; `percent` is the headline."""

    metric: str
    units: tuple[Unit, ...]
    n_rows: int  # broken ones included
    broken: int  # rows that cannot be used; they count as wrong
    parse_failures: int  # answers from which the rules extract no option
    refusals: int  # answers that decline to choose
    extra: Mapping[str, float]  # further metrics in percent
    table: Mapping[str, Any]  # the benchmark's customary results table

    @property
    def percent(self) -> float:
        """Mean value of the units, in percent; for right and wrong answers, the share of right."""
        return percent(unit.value for unit in self.units)


Scorer = Callable[[Sequence[Fields], Mapping[str, str], str], TaskScore]


@dataclass(frozen=True)
class Task:
    """A benchmark opened for evaluation; see `broken.mark_broken` for its broken rows."""

    name: str  # key in reports
    kind: str  # a key of `registry.TASK_KINDS`
    metric: str
    items: tuple[Item, ...]  # without the broken rows
    fields: tuple[Fields, ...]  # of all items and of the broken rows, for scoring
    profile: str  # answer-extraction rules
    synthetic: bool  # packaged drawings, not the published benchmark
    fingerprint: Mapping[str, Any]  # everything that changes prompts, images or scores
    scorer: Scorer = field(repr=False)
    source: str = ""  # file name, for messages
    deviations: tuple[str, ...] = ()  # from the published file
    notes: tuple[str, ...] = ()  # for the report: the deviations and the broken rows
    rounds: Mapping[str, int] = field(default_factory=dict)
    """Item id -> number of the call that asked it first; batches are planned within a round."""

    @property
    def digests(self) -> dict[str, str]:
        """Digests of the items' prompts, by id."""
        return {item.id: item.digest for item in self.items}

    @property
    def forced_digests(self) -> dict[str, str]:
        """Digests of all that a divergence from the base's answers depends on, by item id."""
        return {item.id: forced_digest(item.digest, item.fields) for item in self.items}

    def items_by_round(self) -> list[list[Item]]:
        """Return the items of each round, in order; items without a number are in round 0."""
        rounds: dict[int, list[Item]] = defaultdict(list)
        for item in self.items:
            rounds[self.rounds.get(item.id, 0)].append(item)
        return [rounds[number] for number in sorted(rounds)]

    def score(self, predictions: Mapping[str, str]) -> TaskScore:
        """Score one answer per item (item id -> text).

        Raises:
            ValueError: an item has no answer.
        """
        require_all(self.name, self.fields, predictions)
        return self.scorer(self.fields, predictions, self.profile)


def answer_key(question: str, sample: int | None) -> str:
    """Return the key of an answer among those of a benchmark.

    Args:
        question: id of the item.
        sample: number of the sampled answer; None: greedy, the only answer to the item.
    """
    return question if sample is None else f"{sample}:{question}"


def _describe(message: Message) -> list[Any]:
    """Return a message as JSON values, images as their digest and decoding."""
    content = message["content"]
    parts = content if isinstance(content, str) else [_describe_part(part) for part in content]
    return [message["role"], parts]


def _describe_part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return dict(part)
    image: StoredImage = part["image"]
    return {"type": "image", "sha256": image.digest, "decoding": image.decoding}


def hash_values(values: Sequence[Any]) -> str:
    """Return 32 hexadecimal digits of the sha256 of JSON values."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def forced_digest(prompt: str, fields: Fields) -> str:
    """Return the digest of a prompt and its gold letter, of which divergences are reported too.

    Args:
        prompt: digest of the prompt.
        fields: fields of the item.
    """
    return hash_values([prompt, gold_letter(fields)])


def gold_letter(fields: Fields) -> str:
    """Return the gold answer; empty if there are several."""
    answers: Sequence[Any] = fields.get("answers") or [fields.get("answer")]
    return str(answers[0]) if len(answers) == 1 else ""


def is_broken(fields: Fields) -> bool:
    """Whether a row is broken: not answered by the model, and counted as wrong."""
    return bool(fields.get("fault"))


def with_fault(fields: Fields, fault: str | None) -> Fields:
    """Add a fault to the fields of a row, with its line in formats with one row per line."""
    if not fault:
        return fields
    prefix = f"line {fields['line']}: " if fields.get("line") else ""
    return {**fields, "fault": prefix + fault.removeprefix(prefix)}


def require_all(name: str, fields: Iterable[Fields], predictions: Collection[str]) -> None:
    """Refuse to score an unfinished run: omitting rows would shrink the denominator.

    Args:
        name: name of the task.
        fields: fields of all its items and broken rows.
        predictions: ids of the answered items.

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


def percent(hits: Iterable[float]) -> float:
    """Return the mean of truth values or of numbers in [0, 1], in percent; 0 without any."""
    values = list(hits)
    return 100.0 * sum(values) / len(values) if values else 0.0


def by_unit(fields: Iterable[Fields]) -> dict[str, list[Fields]]:
    """Group items by their unit, in order of first appearance."""
    units: dict[str, list[Fields]] = defaultdict(list)
    for item in fields:
        units[item["unit"]].append(item)
    return dict(units)


def sample_units(units: Mapping[str, str], limit: int, seed: int) -> set[str]:
    """Sample `limit` units, spread over categories in proportion to their size.

    A larger limit adds units to the sample of a smaller one. The numbers per category are those of
    the quota method (Balinski and Young, "The quota method of apportionment", American
    Mathematical Monthly 82, 1975), which are within one of the exact proportion for every limit.

    Args:
        units: unit id -> category.
        limit: number of units, at least 1; all units if there are no more.
        seed: the same units, limit and seed give the same sample.

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
    # Ties go by a seeded order, so that no category is favoured by its name.
    order = sorted(pools)
    rng.shuffle(order)
    quota = dict.fromkeys(order, 0)
    for total in range(1, limit + 1):
        below = (c for c in order if quota[c] * len(units) < len(pools[c]) * total)
        quota[max(below, key=lambda c: len(pools[c]) / (quota[c] + 1))] += 1
    return {unit for c, pool in pools.items() for unit in pool[: quota[c]]}


def choice_fields(row: Row) -> dict[str, Any]:
    """Return the fields shared by the benchmarks with options; the key order is stored."""
    return {
        "choices": row.options,
        "answer": row.get("answer"),
        "category": row.get("category", "none"),
        "group": row.l2_category or "none",
        "split": row.get("split"),
    }


def row_answer(item: Fields, predictions: Mapping[str, str]) -> str:
    """Return the answer of a row; empty for a broken one."""
    return "" if is_broken(item) else predictions[item["id"]]


def row_unit(item: Fields, correct: bool, answer: str, *, points: float | None = None) -> Unit:
    """Return the unit of a benchmark whose rows count one by one.

    Args:
        item: fields of the row.
        correct: whether its answer is right; ignored for a broken row, which is wrong.
        answer: its normalized answer.
        points: its value, see `Unit`; 0 for a broken one.
    """
    return Unit(
        id=item["unit"],
        correct=correct and not is_broken(item),
        category=item["category"],
        group=item["group"],
        rows=(item["id"],),
        answers=(answer,),
        points=points,
    )


_SHORT = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}


def tabulate_units(
    units: Sequence[Unit], splits: Iterable[str | None]
) -> dict[str, dict[str, float]]:
    """Compute the `accuracy_table` of units.

    Args:
        units: the scored units.
        splits: split of each unit; None or empty where the benchmark has none.
    """
    return accuracy_table(
        {
            "hit": unit.value,
            "split": split,
            "l2-category": unit.group,
            "category": unit.category,
        }
        for unit, split in zip(units, splits, strict=True)
    )


def accuracy_table(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Compute accuracy per split: overall, per coarse category, per category, as fractions.

    Args:
        rows: mappings with `hit` (in [0, 1]) and, where known, `split`, `l2-category`, `category`.

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
    return float(sum(row["hit"] for row in rows)) / len(rows)
