"""Questions of scenes in words: phrasings, answer options and chat messages."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from .phrases import phrasings, translate, translate_list
from .scene import Question

MULTIPLE_CHOICE_SUFFIX = "Please select the correct answer from the options above."
MULTIPLE_CHOICE_SUFFIX_ZH = "请直接回答选项字母。"
SHORT_ANSWER_SUFFIX = "Please try to answer the question with short words or phrases if possible."
LETTERS = "ABCDEFGHI"


@dataclass(frozen=True)
class WordedQuestion:
    """A question in words. `answer` is a letter if there are options, otherwise a text."""

    question: str
    options: tuple[str, ...]
    """Empty for an open question."""
    answer: str
    skill: str

    def body(self, *, language: str = "en", bare: bool = False) -> str:
        """Return the text of the user's turn; `bare` omits the leading `Question: `."""
        if not self.options:
            return self.question
        lead = "" if bare else "Question: "
        listed = "".join(
            f"{letter}. {text}\n" for letter, text in zip(LETTERS, self.options, strict=False)
        )
        suffix = MULTIPLE_CHOICE_SUFFIX_ZH if language == "zh" else f"{MULTIPLE_CHOICE_SUFFIX} \n"
        return f"{lead}{self.question}\nOptions:\n{listed}{suffix}"


def choose_options(question: Question, rng: random.Random, count: int) -> tuple[str, ...]:
    """Return the answer and wrong answers in random order, at most `count` in total."""
    wrong = rng.sample(question.wrong, min(count - 1, len(question.wrong)))
    options = [question.answer, *wrong]
    rng.shuffle(options)
    return tuple(options)


def word_question(
    question: Question, options: Sequence[str], rng: random.Random, *, language: str = "en"
) -> WordedQuestion:
    """Put a question into words.

    Args:
        question: question of a scene.
        options: from `choose_options`; empty for an open question.
        rng: chooses the phrasing.
        language: `en` or `zh`.
    """
    slots = {k: translate(v, language) for k, v in question.slots.items()}
    text = rng.choice(phrasings(question.skill, language)).format(**slots)
    if not options:
        translate_answer = translate_list if question.skill == "list" else translate
        return WordedQuestion(text, (), translate_answer(question.answer, language), question.skill)
    letter = LETTERS[options.index(question.answer)]
    translated = tuple(translate(option, language) for option in options)
    return WordedQuestion(text, translated, letter, question.skill)


def user_turn(images: Sequence[Image.Image], text: str) -> list[dict[str, object]]:
    """Return the messages of one user's turn: the images, then the text."""
    content: list[dict[str, object]] = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
