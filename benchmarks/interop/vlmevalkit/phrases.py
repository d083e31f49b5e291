"""Right and wrong answers to the questions of a benchmark, in various words.

A model answers in one way; these answers reach the parts of the matching rules that its answers do
not, and the profiles read some of them differently.
"""

from __future__ import annotations

from vlpress.eval.tasks.benchmarks.mmbench import ROTATION
from vlpress.eval.tasks.benchmarks.mmmu import as_choice
from vlpress.eval.tasks.task import Fields, Task

CHOICE_PHRASES = (
    "{letter}",
    "{letter}. {text}",
    "The answer is ({letter}).",
    "{letter}, because nothing else in the image comes close to it",
    "{text}",
    "The image shows {text}, and none of the others can be seen in any part of the image at all",
    "A closer look at the image shows {text}",
    "It is not possible to tell.",
    "Z",
)
TEXT_PHRASES = (
    "{text}",
    "The text reads: {upper}.",
    "{spaced}",
    "\n{text}\n",
    "It is not possible to read it.",
)
WRONG_EVERY = 7  # every seventh question is answered with another option


def phrase_answers(task: Task) -> dict[str, str]:
    """Answers in the words of `CHOICE_PHRASES` or `TEXT_PHRASES`, in turn by question."""
    return {
        fields["id"]: phrase_text(fields, number)
        if task.kind in ("ocrbench", "docvqa", "chartqa", "textvqa")
        else phrase_choice(fields, int(fields["id"]) % ROTATION)
        for number, fields in enumerate(task.fields)
    }


def phrase_choice(fields: Fields, number: int) -> str:
    """Name the right option, or another one for every seventh number."""
    choices, letter = as_choice(fields)
    if number % WRONG_EVERY == 0:
        letter = next(other for other in choices if other != letter)
    phrase = CHOICE_PHRASES[number % len(CHOICE_PHRASES)]
    return phrase.format(letter=letter, text=choices[letter])


def phrase_text(fields: Fields, number: int) -> str:
    """Write the first accepted answer."""
    text = fields["answers"][0]
    phrase = TEXT_PHRASES[number % len(TEXT_PHRASES)]
    return phrase.format(text=text, upper=text.upper(), spaced=" ".join(text))
