"""The built-in source of samples: pictures that we draw, and questions about them.

One generator serves three disjoint uses, told apart by the seed alone: the stream that trains the
built-in model, the calibration set, and the built-in benchmark files. ``STREAMS`` keeps their
seeds apart, so that no picture of one appears in another.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from PIL import Image

from ...synthetic import scenes
from ...synthetic.phrases import phrasings, translate, translate_list
from ...synthetic.scene import Question, Scene
from .sample import Sample

MULTIPLE_CHOICE_SUFFIX = "Please select the correct answer from the options above."
MULTIPLE_CHOICE_SUFFIX_ZH = "请直接回答选项字母。"
SHORT_ANSWER_SUFFIX = "Please try to answer the question with short words or phrases if possible."
LETTERS = "ABCDEFGHI"


class Stream(IntEnum):
    """Who draws: seeds of different streams never meet."""

    TRAINING = 1
    CALIBRATION = 2
    BENCHMARK = 3


def generator(stream: Stream, seed: int) -> random.Random:
    """The random generator of one stream and seed."""
    return random.Random(f"vlpress/{int(stream)}/{seed}")


@dataclass(frozen=True)
class Asked:
    """A question in words: ``options`` is empty for an open one, else ``answer`` is a letter."""

    question: str
    options: tuple[str, ...]
    answer: str
    skill: str

    def body(self, *, language: str = "en", bare: bool = False) -> str:
        """The text of the user's turn; ``bare`` leaves out the leading ``Question: ``."""
        if not self.options:
            return self.question
        lead = "" if bare else "Question: "
        listed = "".join(
            f"{letter}. {text}\n" for letter, text in zip(LETTERS, self.options, strict=False)
        )
        suffix = MULTIPLE_CHOICE_SUFFIX_ZH if language == "zh" else f"{MULTIPLE_CHOICE_SUFFIX} \n"
        return f"{lead}{self.question}\nOptions:\n{listed}{suffix}"


def choose_options(question: Question, rng: random.Random, count: int) -> tuple[str, ...]:
    """The right answer and wrong ones in random order, ``count`` or as many as the pool gives."""
    wrong = rng.sample(question.wrong, min(count - 1, len(question.wrong)))
    options = [question.answer, *wrong]
    rng.shuffle(options)
    return tuple(options)


def word_question(
    question: Question, options: Sequence[str], rng: random.Random, *, language: str = "en"
) -> Asked:
    """Put a question into words.

    Args:
        question: what is asked.
        options: from ``choose_options``; empty for an open question.
        rng: chooses the phrasing.
        language: ``"en"`` or ``"zh"``.
    """
    slots = {k: translate(v, language) for k, v in question.slots.items()}
    wording = rng.choice(phrasings(question.skill, language)).format(**slots)
    if not options:
        put = translate_list if question.skill == "list" else translate
        return Asked(wording, (), put(question.answer, language), question.skill)
    letter = LETTERS[options.index(question.answer)]
    listed = tuple(translate(text, language) for text in options)
    return Asked(wording, listed, letter, question.skill)


def draw_scene(rng: random.Random, kinds: Sequence[str] | None = None) -> Scene:
    """A random scene of one of ``kinds`` (all of them by default)."""
    return scenes.SCENES[rng.choice(tuple(kinds or scenes.SCENES))](rng)


def user_turn(pictures: Sequence[Image.Image], text: str) -> list[dict[str, object]]:
    """One chat message: the pictures, then the text."""
    content: list[dict[str, object]] = [{"type": "image", "image": p} for p in pictures]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def calibration_samples(n: int, seed: int) -> list[Sample]:
    """``n`` samples with an answer, half of them multiple choice, one in eight Chinese.

    Scenes take turns, so that a small set covers them all.
    """
    rng = generator(Stream.CALIBRATION, seed)
    kinds = tuple(scenes.SCENES)
    out = []
    for i in range(n):
        scene = scenes.SCENES[kinds[i % len(kinds)]](rng)
        language = "zh" if rng.random() < 0.125 else "en"
        question = rng.choice(scene.questions)
        options = choose_options(question, rng, 4) if rng.random() < 0.5 else ()
        asked = word_question(question, options, rng, language=language)
        images = [p.image for p in scene.pictures]
        messages = user_turn(images, asked.body(language=language))
        out.append(Sample(messages=messages, answer=asked.answer, id=f"synthetic-{seed}-{i}"))
    return out
