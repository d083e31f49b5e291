"""Conversion of items to OpenAI-compatible chat messages, and of replies to answers.

`openai_client` sends them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

from PIL import Image

from ...model.processing.images import open_header
from ..tasks.files.image_store import StoredImage, is_plain
from ..tasks.generated.reasoning import NONE, OPENED, TAGS, SplitText, split_text
from ..tasks.task import Item
from .runner import Completion

MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
IMAGE_ENCODING = "original bytes; RGB PNG where decoders disagree"
"""Named in the fingerprint of a served run."""
REASONING_FIELDS = ("reasoning", "reasoning_content")
"""Fields of a reply's message with the reasoning; vLLM renamed the second to the first."""


def chat_messages(item: Item) -> list[dict[str, Any]]:
    """Convert the messages of an item; images become data URLs and keep their positions."""
    return [
        {
            "role": message["role"],
            "content": message["content"]
            if isinstance(message["content"], str)
            else [_convert_part(part) for part in message["content"]],
        }
        for message in item.messages
    ]


def _convert_part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "image":
        return {"type": "image_url", "image_url": {"url": data_url(part["image"])}}
    return {"type": "text", "text": part["text"]}


def data_url(image: StoredImage) -> str:
    """Encode an image as a data URL, by its own bytes if all servers read the same pixels in them.

    Other formats, and images with transparency, an EXIF orientation, 16 bits per channel or several
    frames, which servers treat differently, are sent as lossless PNG of the pixels that a local
    model gets.

    Raises:
        ValueError: the image does not decode.
    """
    data = image.read()
    media = _media_type(data)
    if media is None:
        buffer = io.BytesIO()
        image.open().save(buffer, format="PNG")
        media, data = MEDIA_TYPES["PNG"], buffer.getvalue()
    return f"data:{media};base64,{base64.b64encode(data).decode('ascii')}"


def _media_type(data: bytes) -> str | None:
    """Return the media type of an encoded image if its bytes can be sent; else None."""
    try:
        with open_header(data) as header:
            return MEDIA_TYPES.get(header.format or "") if is_plain(header) else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None  # `StoredImage.open` raises the error to show


def parse_reply(reply: object, rule: str = NONE) -> Completion:
    """Parse the body of a chat completion.

    A reply without text is an empty answer. Only the finish reason "stop" means that the model
    ended by itself; token counts and log-probabilities are None if the server reports none.

    A server that separates the reasoning (vLLM with a reasoning parser) has it in a field of
    `REASONING_FIELDS`, and does not tell whether it ended: without an answer it counts as
    unfinished. Otherwise the rule is applied to the content.

    Args:
        reply: the body.
        rule: a name in `reasoning.RULES`.

    Raises:
        ValueError: the body is not a chat completion; the message quotes it. Or it has a reasoning
            and the rule is none.
    """
    try:
        choice = _mapping(_mapping(reply)["choices"][0])
        message = _mapping(choice["message"])
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"the reply is no chat completion: {str(reply)[:200]}") from error
    text, reasoning = _text(message, ("content",)), _text(message, REASONING_FIELDS)
    split = split_text(text, rule)
    if reasoning:
        answer = text.lstrip()
        split = SplitText(reasoning, answer, is_unfinished=not answer)
        if rule == NONE:
            raise ValueError(
                f"the reply has a reasoning of {len(reasoning)} characters, and the reasoning rule "
                f"is {NONE}; give --reasoning {OPENED} if the model's chat template opens the "
                f"reasoning, or {TAGS}"
            )
    usage = _mapping(reply).get("usage")
    completion = Completion(
        split.answer,
        _count(usage, "completion_tokens"),
        choice.get("finish_reason") == "stop",
        prompt_tokens=_count(usage, "prompt_tokens"),
        first_logprobs=_first_logprobs(choice),
    )
    if not split.reasoning and not split.is_unfinished:
        return completion
    details = usage.get("completion_tokens_details") if isinstance(usage, Mapping) else None
    tokens = _count(details, "reasoning_tokens")
    return replace(
        completion,
        reasoning=split.reasoning,
        reasoning_tokens=completion.n_tokens if split.is_unfinished and tokens is None else tokens,
        is_unfinished=split.is_unfinished,
    )


def _text(message: Mapping[str, Any], fields: Sequence[str]) -> str:
    """Return the first text among fields of a message; empty if they are missing or empty."""
    for field in fields:
        text = message.get(field)
        if text is not None and not isinstance(text, str):
            raise ValueError(f"the reply's {field} is {type(text).__name__}, not text")
        if text:
            return text
    return ""


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{type(value).__name__} in the place of an object")
    return value


def _count(usage: object, key: str) -> int | None:
    value = usage.get(key) if isinstance(usage, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _first_logprobs(choice: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the alternatives of the first token; among tokens of equal text the likeliest."""
    try:
        offered = choice["logprobs"]["content"][0]["top_logprobs"]
        pairs = [(str(each["token"]), float(each["logprob"])) for each in offered]
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    logprobs: dict[str, float] = {}
    for token, logprob in pairs:
        if isfinite(logprob):  # JSON has no infinities
            logprobs[token] = max(logprob, logprobs.get(token, logprob))
    return logprobs or None
