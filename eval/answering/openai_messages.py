"""The OpenAI-compatible chat form: items as messages, a server's reply as an answer.

Nothing here talks to a server; `endpoint.py` does.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from math import isfinite
from typing import Any

from PIL import Image

from ...model.processing.images import ORIENTATION, open_header
from ..tasks.files.image_store import Picture
from ..tasks.task import Item
from .runner import Answer
from .vision_features import pictures

MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
PLAIN_MODES = ("RGB", "L", "P", "1")  # every decoder makes the same RGB of these
PICTURES = "original bytes; RGB PNG where decoders disagree"


def chat_messages(item: Item) -> list[dict[str, Any]]:
    """The item's messages with each picture as a data URL, in the same order."""
    shown = pictures(item)
    found = []
    for message in item.messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [
                {"type": "image_url", "image_url": {"url": data_url(next(shown))}}
                if part["type"] == "image"
                else {"type": "text", "text": part["text"]}
                for part in content
            ]
        found.append({"role": message["role"], "content": content})
    return found


def data_url(picture: Picture) -> str:
    """An image as a data URL: its own bytes wherever every server reads the same pixels in them.

    Other formats, and images with transparency, an EXIF orientation, 16 bits per channel or several
    frames, which servers treat in different ways, are sent as lossless PNG of the pixels that a
    model in this process is shown.

    Raises:
        ValueError: the image does not decode.
    """
    data = picture.read()
    media = _media_type(data)
    if media is None:
        buffer = io.BytesIO()
        picture.open().save(buffer, format="PNG")
        media, data = MEDIA_TYPES["PNG"], buffer.getvalue()
    return f"data:{media};base64,{base64.b64encode(data).decode('ascii')}"


def _media_type(data: bytes) -> str | None:
    """Media type of bytes that can be sent as they are; None for the rest."""
    try:
        with open_header(data) as image:
            is_plain = (
                image.mode in PLAIN_MODES
                and not _is_deep(image)
                and "transparency" not in image.info
                and getattr(image, "n_frames", 1) == 1
                and image.getexif().get(ORIENTATION, 1) == 1
            )
            return MEDIA_TYPES.get(image.format or "") if is_plain else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None  # let `Picture.open` say what is wrong with it


def _is_deep(image: Image.Image) -> bool:
    """Whether Pillow reads 8 of 16 bits: colours in PNG, which it has no mode of 16 bits for."""
    return any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))


def parse_reply(reply: object) -> Answer:
    """Read the body of a chat completion.

    A reply without text is an empty answer. Only the finish reason "stop" counts as an end of the
    model's own; token counts and log-probabilities are None where the server gives none.

    Raises:
        ValueError: the body is no chat completion; the message says what it is.
    """
    try:
        choice = _mapping(_mapping(reply)["choices"][0])
        text = _mapping(choice["message"]).get("content")
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"the reply is no chat completion: {str(reply)[:200]}") from error
    if text is not None and not isinstance(text, str):
        raise ValueError(f"the reply's content is {type(text).__name__}, not text")
    usage = _mapping(reply).get("usage")
    return Answer(
        text or "",
        _count(usage, "completion_tokens"),
        choice.get("finish_reason") == "stop",
        prompt_tokens=_count(usage, "prompt_tokens"),
        first_logprobs=_first_logprobs(choice),
    )


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{type(value).__name__} in the place of an object")
    return value


def _count(usage: object, key: str) -> int | None:
    value = usage.get(key) if isinstance(usage, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _first_logprobs(choice: Mapping[str, Any]) -> dict[str, float] | None:
    """The first answer token's alternatives; of tokens with one text the likeliest."""
    try:
        offered = choice["logprobs"]["content"][0]["top_logprobs"]
        pairs = [(str(each["token"]), float(each["logprob"])) for each in offered]
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    found: dict[str, float] = {}
    for token, logprob in pairs:
        if isfinite(logprob):  # JSON has no infinities
            found[token] = max(logprob, found.get(token, logprob))
    return found or None
