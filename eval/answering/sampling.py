"""Decoding of an evaluation's answers: greedy, or several samples of each question.

A sampled answer has a seed of its own, which follows from the base seed, the id of its question
and the number of the sample (`sample_seed`). It does not depend on the batch, on the order of the
questions or on other questions, so that an interrupted run resumes with the same answers, and base
and candidate draw from the same random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..config import AnswerOptions
from ..tasks.task import Item, Task, hash_values

SEEDS = "sha256 of seed, question and sample, 31 bits"
"""Name of the rule of `sample_seed` in fingerprints."""


@dataclass(frozen=True)
class Decoding:
    """Decoding of all answers of an evaluation; the default is one greedy answer per question.

    Raises:
        ValueError: several samples or a restriction of sampling without a temperature, or `top_p`
            is 0.
    """

    samples: int = 1
    """Answers per question, at least 1."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    seed: int = 0
    """Base seed."""

    def __post_init__(self) -> None:
        if self.top_p <= 0:
            raise ValueError(f"--top-p {self.top_p:g}: no token is left; give more than 0, up to 1")
        given = {
            f"--samples {self.samples}": self.samples != 1,
            f"--top-p {self.top_p:g}": self.top_p != 1,
            f"--top-k {self.top_k}": self.top_k != 0,
        }
        if self.is_greedy and any(given.values()):
            raise ValueError(
                f"{next(name for name, is_set in given.items() if is_set)} with --temperature 0: "
                "greedy answers are always the same; give a --temperature above 0, or leave it out"
            )

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is chosen each time."""
        return self.temperature == 0

    @property
    def note(self) -> str:
        """Addition to the description of an evaluation; empty if it is greedy."""
        if self.is_greedy:
            return ""
        answers = "answer" if self.samples == 1 else "answers"
        return f" with {self.samples} sampled {answers} per question"

    @classmethod
    def of(cls, options: AnswerOptions, seed: int) -> Decoding:
        """Return the decoding that options ask for.

        Raises:
            ValueError: the options contradict each other.
        """
        return cls(options.samples, options.temperature, options.top_p, options.top_k, seed)

    def describe(self) -> dict[str, Any]:
        """Return the part `generation` of a fingerprint; the base seed is in its `seed`."""
        generation = {"temperature": self.temperature, "repetition_penalty": 1.0}
        if self.is_greedy:
            return generation
        limits = {"top_p": self.top_p, "top_k": self.top_k}
        return {**generation, **limits, "samples": self.samples, "seeds": SEEDS}

    def items(self, items: Sequence[Item]) -> tuple[Item, ...]:
        """Return the items to answer: themselves, or one per sample with its number and seed."""
        if self.is_greedy:
            return tuple(items)
        return tuple(
            replace(item, sample=number, seed=sample_seed(self.seed, item.id, number))
            for item in items
            for number in range(1, self.samples + 1)
        )

    def repeat(self, task: Task) -> Task:
        """Return a task with the items to answer."""
        return replace(task, items=self.items(task.items))


GREEDY = Decoding()


def sample_seed(seed: int, question: str, number: int) -> int:
    """Return the seed of a sampled answer.

    Args:
        seed: base seed of the evaluation.
        question: id of the item.
        number: number of the sample, from 1.

    Returns:
        0 to 2^31 - 1, which every server takes.
    """
    return int(hash_values([seed, question, number])[:8], 16) >> 1


def sample_numbers(setup: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Return the numbers of a run's samples, from 1; a single None if its answers are greedy.

    Args:
        setup: fingerprint of the run.
    """
    samples = setup.get("generation", {}).get("samples")
    return (None,) if samples is None else tuple(range(1, samples + 1))


def first_sample(setup: Mapping[str, Any]) -> Decoding:
    """Return the decoding of a run's first sample of each question, to answer it again.

    Args:
        setup: fingerprint of the run.
    """
    if sample_numbers(setup) == (None,):
        return GREEDY
    generation = setup["generation"]
    limits = (generation["top_p"], generation["top_k"])
    return Decoding(1, generation["temperature"], *limits, setup["seed"])
