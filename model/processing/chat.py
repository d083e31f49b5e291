"""Chat messages: the one place that knows their forms.

Whatever reads messages (records of calibration data, `Processor.encode`, the command line) turns
them into one form first: a role, and content that is a text or a list of the parts

    {"type": "text", "text": ...}
    {"type": "image", "image": bytes, a path or a Pillow image, and `ImageOptions`}
    {"type": "video", "video": a path or a list of frames, and `VideoOptions`}

Read are the forms of transformers, qwen-vl-utils and the OpenAI API, those of TRL, ms-swift and
LLaMA-Factory, which hold images and videos in columns beside the messages, and ShareGPT's. What is
not understood is refused by name: nothing that a message says is left out. Keys of a message beside
role and content are the template's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .columns import Columns
from .media import shorten
from .parts import KINDS, read_part, read_text
from .visual_options import ImageOptions, VideoOptions, read_options

Message = dict[str, Any]
MEDIA_KEYS = (
    *("image", "images", "image_url", "image_urls", "image_path", "image_paths", "pixel_values"),
    *("video", "videos", "video_url", "video_path", "audio", "audios", "input_audio"),
    *("bytes", "path", "url", "base64", "media", "medias", "files", "attachments", "objects"),
)
"""Keys that may hold media, beside role and content or in a record; refused where unread."""
_ROLES = {"human": "user", "gpt": "assistant"}
_KNOWN_ROLES = ("user", "assistant", "system", "tool")


@dataclass(frozen=True)
class VisualSource:
    """An image or video as the message gives it; `data` is None for a bare placeholder."""

    kind: Literal["image", "video"]
    data: Any
    options: ImageOptions | VideoOptions


def parse_messages(
    messages: object,
    *,
    images: object = None,
    videos: object = None,
    folder: Path | None = None,
    bare: bool = False,
) -> list[Message]:
    """Read messages of any known form.

    Args:
        messages: A list of objects with `role` and `content`, or with `from` and `value`.
        images: The column of images beside the messages, if there is one: one entry or a list.
            Each part `{"type": "image"}` without an image, and each mark `<image>` in a text,
            takes the next entry. Without a column marks are text.
        videos: The same for videos and `<video>`.
        folder: What relative paths start from; None: the current directory.
        bare: Whether parts without data may stay so where there is no column.

    Returns:
        Messages of the form above. Files exist, but are not opened.

    Raises:
        FileNotFoundError: A file that is named does not exist.
        ValueError: The messages have another form, or a part has no data.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise ValueError(f"messages {shorten(messages)}: must be a list of at least one message")
    columns = Columns(images, videos, bare=bare)
    parsed = [_message(message, columns, folder) for message in messages]
    columns.check_used_up()
    return parsed


def without_data(messages: Sequence[Any]) -> list[Any]:
    """Messages whose images and videos are bare placeholders, whatever stands for them."""
    return [
        {**message, "content": [_bare(part) for part in message["content"]]}
        if isinstance(message, Mapping) and isinstance(message.get("content"), list | tuple)
        else message
        for message in messages
    ]


def _bare(part: Any) -> Any:
    kind = KINDS.get(str(part.get("type")), "text") if isinstance(part, Mapping) else "text"
    return part if kind == "text" else {"type": kind}


def split_messages(messages: Sequence[Message]) -> tuple[list[Message], list[VisualSource]]:
    """Messages with bare placeholders, and the visuals in order of appearance.

    Args:
        messages: As `parse_messages` returns them.
    """
    plain: list[Message] = []
    sources: list[VisualSource] = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            sources += [_source(part) for part in content if part["type"] != "text"]
            content = [
                dict(part) if part["type"] == "text" else {"type": part["type"]} for part in content
            ]
        plain.append({**message, "content": content})
    return plain, sources


def _source(part: Mapping[str, Any]) -> VisualSource:
    if part["type"] == "image":
        return VisualSource("image", part.get("image"), read_options(ImageOptions, part))
    return VisualSource("video", part.get("video"), read_options(VideoOptions, part))


def _message(message: object, columns: Columns, folder: Path | None) -> Message:
    if not isinstance(message, Mapping):
        raise ValueError(f"message {shorten(message)}: must be an object with role and content")
    given = {key: value for key, value in message.items() if value is not None}
    named = given
    if "from" in given and "role" not in given:
        named = {"role" if key == "from" else key: value for key, value in given.items()}
        if "content" not in named and "value" in named:
            named["content"] = named.pop("value")
    role = _role(named.pop("role", None), message)
    unread = [key for key in named if key in MEDIA_KEYS or not isinstance(key, str)]
    if unread:
        raise ValueError(
            f"message with the key {shorten(unread[0])}: not read there; put images and videos "
            "into the content as parts"
        )
    if "content" not in named:
        if "tool_calls" not in named:
            raise ValueError(f"message {shorten(message)}: needs a role and content")
        named["content"] = ""
    return {"role": role, **named, "content": _content(named["content"], columns, folder)}


def _role(role: object, message: object) -> str:
    if not isinstance(role, str) or not role:
        raise ValueError(f"message {shorten(message)}: needs a role and content")
    role = _ROLES.get(role, role)
    if role not in _KNOWN_ROLES:
        allowed = ", ".join((*_KNOWN_ROLES, *_ROLES))
        raise ValueError(f"message of role {shorten(role)}; allowed: {allowed}")
    return role


def _content(content: object, columns: Columns, folder: Path | None) -> str | list[Message]:
    if isinstance(content, str):
        parts = list(columns.fill(read_text(content), folder))
        return content if all(part["type"] == "text" for part in parts) else parts
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise ValueError(
            f"content {shorten(content)}: allowed: a text, or a list of parts with a type"
        )
    read = (read_part(part, folder) for part in content)
    return [filled for part in read for filled in columns.fill(part, folder)]
