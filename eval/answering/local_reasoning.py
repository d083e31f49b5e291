"""Reasoning of a local model: the rule of its chat template, and the length in tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...model.processing.chat_templates import PROBE, QUESTION, render_chat
from ...model.processing.processor import Processor
from ...model.processing.reasoning_tags import BEGIN, END
from ..tasks.generated.reasoning import NONE, OPENED, TAGS


def choose_rule(processor: Processor) -> str:
    """Choose the reasoning rule by the chat template of a checkpoint.

    Args:
        processor: processor of the model.

    Returns:
        `think-opened` if the prompt of an answer opens the reasoning; `think-tags` if the template
        knows the end tag, but the prompt does not hold it; `none` otherwise: the template knows of
        no reasoning, or the prompt closes it (a hybrid model that answers at once).

    Raises:
        ValueError: the tokenizer leaves the end tag out of decoded text.
    """
    tokenizer = processor.tokenizer
    prompt = render_chat(tokenizer, PROBE, add_generation_prompt=True)
    opening = prompt.rpartition(QUESTION)[2]
    if opening.rfind(BEGIN) > opening.rfind(END):
        rule = OPENED
    elif END in opening or END not in str(tokenizer.chat_template):
        return NONE
    else:
        rule = TAGS
    ids = tokenizer.encode(END, add_special_tokens=False)
    if END not in processor.decode(ids):
        raise ValueError(
            f"the chat template has {END}, but the tokenizer leaves it out of decoded text (a "
            "special token), so that the end of a reasoning cannot be seen; take the tokenizer of "
            "the original checkpoint, or give --reasoning none"
        )
    return rule


def count_prefix(ids: Sequence[int], decode: Callable[[Sequence[int]], str], length: int) -> int:
    """Count the tokens that the first characters of a text take.

    Args:
        ids: tokens of the text.
        decode: converts tokens to text; more tokens give a longer text.
        length: number of characters.

    Returns:
        The smallest number of tokens whose text has at least that many characters; all tokens if
        the text is shorter.
    """
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if len(decode(ids[:middle])) < length:
            low = middle + 1
        else:
            high = middle
    return low
