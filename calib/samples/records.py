"""From one record of a JSONL file or a dataset to a calibration sample.

A record is a question, a conversation, or a text:

    {"image": "cat.png", "question": "What is this?", "answer": "A cat."}
    {"messages": [{"role": "user", "content": [...]}, {"role": "assistant", "content": "A cat."}]}
    {"messages": [{"role": "user", "content": "<image>What is this?"}, ...], "images": ["cat.png"]}
    {"conversations": [{"from": "human", "value": "<image>What is this?"}, ...], "image": "cat.png"}
    {"text": "A cat sat on a mat."}

`model.processing.chat` lists the forms of messages, `model.processing.media` those of images.

- `image` and `images` are the same: one image or a list of them; null and an empty list are none.
  `videos` is a list of videos, `video` is one, as a file or as a list of its frames.
- In messages, each mark `<image>` or `<video>` and each part without data takes the next entry of
  its column. In a question or text, marks place the images too, also numbered ones (`<image 1>`);
  without marks, images and videos come first.
- The answer is `answer`, or else the text of the last message, if it is the assistant's. It is a
  text, or a number, which becomes text as it is written; of a list of accepted answers the first
  one is taken. An empty answer is allowed: the sample is then the conversation alone, as it is for
  `text`. No answer at all is an error, and so are null and blanks.
- Earlier turns and system prompts stay as they are; a conversation is one sample. A text in
  `system` becomes the system prompt.
- Keys that are not named here are ignored, unless they hold media, see `media_keys`.
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
KNOWN = (*READ, *CONVERSATIONS, "question", "answer", "text", "system", "id")
_MARK = re.compile(r"<(?:image|video)>")
_NUMBERED = re.compile(r"<image (\d{1,9})>")


def read_record(record: Mapping[str, Any], folder: Path, name: str) -> Sample:
    """The sample that a record describes.

    Args:
        record: see above.
        folder: what relative paths start from.
        name: id of the sample if the record has none.

    Raises:
        FileNotFoundError: a file that is named does not exist.
        ValueError: the record has another form.
    """
    refuse_media_keys(record, KNOWN)
    messages, answer = _messages_and_answer(record, folder)
    _check_marks(messages)
    identity = name if record.get("id") is None else str(record["id"])
    return Sample(_system(record.get("system"), messages), answer, identity)


def plain_text(text: str, name: str) -> Sample:
    """A text as a user's turn, without an answer.

    Raises:
        ValueError: it holds a placeholder token.
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
        f"found keys {', '.join(map(str, record))[:200] or 'none'}; needed are question and "
        "answer (and image), or messages, or text"
    )


def _system(prompt: Any, messages: list[Message]) -> list[Message]:
    """The messages with the system prompt of a column before them."""
    if prompt is None or prompt == "":
        return messages
    if messages[0]["role"] == "system":
        raise ValueError("system beside messages that begin with a system prompt; keep one of them")
    content = read_text(prompt)["text"]
    return [{"role": "system", "content": content}, *messages]


class Written(float):
    """A number that is shown as it was written.

    >>> str(Written("1.50"))
    '1.50'
    """

    text: str

    def __new__(cls, text: str) -> Written:
        """Read a number's text."""
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        """The text."""
        return self.text


def _conversation(messages: list[Message], answer: Any) -> tuple[list[Message], str]:
    """The messages before the answer, and the answer."""
    said = None
    if messages[-1]["role"] == "assistant":
        said = _spoken(messages.pop())
    if not any(message["role"] == "user" for message in messages):
        raise ValueError("messages have no user turn before the answer")
    if answer is None:
        if said is None:
            raise ValueError(
                "no answer: end messages with the assistant's, or give 'answer' (\"\" for none)"
            )
        return messages, said
    wanted = _answer(answer)
    if said is not None and said != wanted:
        raise ValueError("answer differs from the assistant's last message; keep one of them")
    return messages, wanted


def _spoken(message: Message) -> str:
    content = message["content"]
    if "tool_calls" in message:
        raise ValueError("the last message calls tools; end messages with an answer in text")
    if isinstance(content, str):
        return _text(content)
    if any(part["type"] != "text" for part in content):
        raise ValueError("the answer holds an image or video; it must be text")
    return "".join(part["text"] for part in content)


def _answer(value: Any) -> str:
    """An answer as text."""
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
    # It is tokenized as it is: a placeholder in it would stand for an image that is not there.
    checked: str = read_text(text)["text"]
    return checked


def _ask(key: str, text: Any, images: list[Any], videos: list[Any], folder: Path) -> list[Message]:
    """One turn of the user, images and videos first or where marks of the text are."""
    if not isinstance(text, str):
        raise ValueError(f"{key} is {text!r:.60}; it must be a text")
    if numbers := _NUMBERED.findall(text):
        if _MARK.search(text) or videos:
            raise ValueError(f"{key} has numbered marks, and others or videos; use one kind")
        return _parsed(_place(text, [int(number) for number in numbers], images), folder)
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


def _place(text: str, numbers: list[int], images: list[Any]) -> list[dict[str, Any]]:
    """The parts of a text whose marks are numbered from 1."""
    wrong = sorted(set(numbers) ^ set(range(1, len(images) + 1)))
    if wrong:
        raise ValueError(
            f"marks and images do not fit: <image {wrong[0]}> is in only one of the text and "
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
    """Refuse marks that no image or video was found for."""
    for message in messages:
        content = message["content"]
        parts = [read_text(content)] if isinstance(content, str) else content
        for part in parts:
            if part["type"] == "text" and (mark := _MARK.search(part["text"])):
                raise ValueError(
                    f"the text has the mark {mark.group()}, but there is nothing in a column for "
                    "it; name the file in 'images' or 'videos', or take the mark out"
                )
