"""Parse one record of a JSONL file or a dataset into a calibration sample.

A record is a question, a conversation, or a text:

    {"image": "cat.png", "question": "What is this?", "answer": "A cat."}
    {"messages": [{"role": "user", "content": [...]}, {"role": "assistant", "content": "A cat."}]}
    {"messages": [{"role": "user", "content": "<image>What is this?"}, ...], "images": ["cat.png"]}
    {"conversations": [{"from": "human", "value": "<image>What is this?"}, ...], "image": "cat.png"}
    {"text": "A cat sat on a mat."}

See `model.processing.chat` for the forms of messages, and `model.processing.media` for those of
images.

- `image` and `images` are synonyms: one image or a list of them; null and an empty list mean none.
  `videos` is a list of videos, `video` is one, as a file or as a list of its frames.
- In messages, each mark `<image>` or `<video>` and each part without data is replaced by the next
  entry of its column. In a question or text, marks also set the positions of images, and may be
  numbered (`<image 1>`); without marks, images and videos come first.
- The answer is `answer`, or the text of the last message if its role is assistant. It is a text,
  or a number, whose text is kept exactly; of a list of accepted answers the first one is used. An
  empty answer is allowed: the sample is then the conversation alone, as for `text`. A missing
  answer, null and blanks are errors.
- Earlier turns and system prompts are kept; a conversation is one sample. A text in `system`
  becomes the system prompt.
- Other keys are ignored, unless they hold media, see `media_keys`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...model.processing.chat import parse_messages
from ...model.processing.parts import read_text
from .media_keys import READ, refuse_media_keys
from .sample import Message, Sample

CONVERSATIONS = ("messages", "conversations")
READ_KEYS = (*READ, *CONVERSATIONS, "question", "answer", "text", "system", "id")
_MARK = re.compile(r"<(?:image|video)>")
_NUMBERED = re.compile(r"<image (\d{1,9})>")


def read_record(record: Mapping[str, Any], folder: Path, name: str) -> Sample:
    """Parse a record into a sample.

    Args:
        record: see the module's docstring.
        folder: base of relative paths.
        name: id of the sample if the record has none.

    Raises:
        FileNotFoundError: an image or video file does not exist.
        ValueError: the record has another form.
    """
    refuse_media_keys(record, READ_KEYS)
    messages, answer = _messages_and_answer(record, folder)
    _check_marks(messages)
    identity = name if record.get("id") is None else str(record["id"])
    return Sample(_system(record.get("system"), messages), answer, identity)


def plain_text(text: str, name: str) -> Sample:
    """Return a sample with the text as the user's turn and no answer.

    Raises:
        ValueError: the text contains a placeholder token.
    """
    return Sample([{"role": "user", "content": [read_text(text)]}], "", name)


def _messages_and_answer(record: Mapping[str, Any], folder: Path) -> tuple[list[Message], str]:
    images, videos = _images(record), _videos(record)
    given = [key for key in CONVERSATIONS if record.get(key) not in (None, [])]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} in one record; keep one of them")
    if given:
        messages = parse_messages(
            record[given[0]], images=images or None, videos=videos or None, folder=folder
        )
        return _conversation(messages, record.get("answer"))
    if (question := record.get("question")) is not None:
        answer = _answer(record.get("answer"))
        return _ask("question", question, images, videos, folder), answer
    if (text := record.get("text")) is not None:
        return _ask("text", text, images, videos, folder), ""
    raise ValueError(
        f"keys are {', '.join(map(str, record))[:200] or 'none'}; expected question and "
        "answer (and image), or messages, or text"
    )


def _system(prompt: Any, messages: list[Message]) -> list[Message]:
    """Add the system prompt of a column to the messages."""
    if prompt is None or prompt == "":
        return messages
    if messages[0]["role"] == "system":
        raise ValueError(
            "the record has `system` and its messages start with a system prompt; keep one of them"
        )
    content = read_text(prompt)["text"]
    return [{"role": "system", "content": content}, *messages]


class ExactFloat(float):
    """A number that keeps its text.

    >>> str(ExactFloat("1.50"))
    '1.50'
    """

    text: str

    def __new__(cls, text: str) -> ExactFloat:
        """Parse the text of a number."""
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        """Return the original text."""
        return self.text


def _conversation(messages: list[Message], answer: Any) -> tuple[list[Message], str]:
    """Split messages into those before the answer, and the answer."""
    last_reply = None
    if messages[-1]["role"] == "assistant":
        last_reply = _reply_text(messages.pop())
    if not any(message["role"] == "user" for message in messages):
        raise ValueError("messages have no user turn before the answer")
    if answer is None:
        if last_reply is None:
            raise ValueError(
                "no answer: end messages with the assistant's, or give 'answer' (\"\" for none)"
            )
        return messages, last_reply
    answer_text = _answer(answer)
    if last_reply is not None and last_reply != answer_text:
        raise ValueError("answer differs from the assistant's last message; keep one of them")
    return messages, answer_text


def _reply_text(message: Message) -> str:
    content = message["content"]
    if "tool_calls" in message:
        raise ValueError("the last message calls tools; end messages with an answer in text")
    if isinstance(content, str):
        return _text(content)
    if any(part["type"] != "text" for part in content):
        raise ValueError("the answer holds an image or video; it must be text")
    return "".join(part["text"] for part in content)


def _answer(value: Any) -> str:
    """Convert an answer to text."""
    answer = value[0] if isinstance(value, list | tuple) and value else value
    if answer is None:
        raise ValueError("no answer: give 'answer' as text (\"\" for none)")
    is_number = isinstance(answer, int | float) and not isinstance(answer, bool)
    if not isinstance(answer, str) and not (is_number and math.isfinite(answer)):
        raise ValueError(f"answer is {answer!r:.60}; it must be a text or a finite number")
    if (text := str(answer)) and not text.strip():
        raise ValueError('answer is blank; give a text ("" for none)')
    return _text(text)


def _text(text: str) -> str:
    # The answer is tokenized verbatim: a placeholder in it would need an image.
    checked: str = read_text(text)["text"]
    return checked


def _ask(key: str, text: Any, images: list[Any], videos: list[Any], folder: Path) -> list[Message]:
    """Return the user's turn, with images and videos at the marks of the text or first."""
    if not isinstance(text, str):
        raise ValueError(f"{key} is {text!r:.60}; it must be a text")
    if numbers := _NUMBERED.findall(text):
        if _MARK.search(text) or videos:
            raise ValueError(f"{key} mixes numbered marks with other marks or videos; use one kind")
        return _parsed(_fill_marks(text, [int(number) for number in numbers], images), folder)
    if (images or videos) and _MARK.search(text):
        turn = [{"role": "user", "content": text}]
        return parse_messages(turn, images=images or None, videos=videos or None, folder=folder)
    first = [
        *({"type": "image", "image": image} for image in images),
        *({"type": "video", "video": video} for video in videos),
    ]
    return _parsed([*first, {"type": "text", "text": text}], folder)


def _parsed(parts: list[dict[str, Any]], folder: Path) -> list[Message]:
    return parse_messages([{"role": "user", "content": parts}], folder=folder)


def _fill_marks(text: str, numbers: list[int], images: list[Any]) -> list[dict[str, Any]]:
    """Return the parts of a text with marks that are numbered from 1."""
    unmatched = sorted(set(numbers) ^ set(range(1, len(images) + 1)))
    if unmatched:
        raise ValueError(
            f"marks and images do not match: <image {unmatched[0]}> is in only one of the text and "
            f"the {len(images)} images"
        )
    pieces = _NUMBERED.split(text)
    parts: list[dict[str, Any]] = []
    for position, piece in enumerate(pieces):
        if position % 2:
            parts.append({"type": "image", "image": images[int(piece) - 1]})
        elif piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _images(record: Mapping[str, Any]) -> list[Any]:
    return _one_of(record, {key: _listed(record.get(key)) for key in ("image", "images")})


def _videos(record: Mapping[str, Any]) -> list[Any]:
    one = record.get("video")
    none = one is None or (isinstance(one, list) and not one)
    return _one_of(
        record, {"video": [] if none else [one], "videos": _listed(record.get("videos"))}
    )


def _one_of(record: Mapping[str, Any], columns: dict[str, list[Any]]) -> list[Any]:
    given = {key: column for key, column in columns.items() if column}
    first, *others = given.values() or [[]]
    if others and others[0] != first:
        raise ValueError(f"{' and '.join(given)} differ; keep one of the keys")
    return first


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _check_marks(messages: list[Message]) -> None:
    """Refuse marks without an image or video."""
    for message in messages:
        content = message["content"]
        parts = [read_text(content)] if isinstance(content, str) else content
        for part in parts:
            if part["type"] == "text" and (mark := _MARK.search(part["text"])):
                raise ValueError(
                    f"the text has the mark {mark.group()}, but no column has an entry for it; "
                    "name the file in 'images' or 'videos', or remove the mark"
                )
