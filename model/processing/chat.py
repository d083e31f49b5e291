"""Parser of chat messages; the only code that depends on their forms.

Calibration records, `Processor.encode` and the command line convert messages to one form first: a
role, and content that is a text or a list of the parts

    {"type": "text", "text": ...}
    {"type": "image", "image": bytes, a path or a Pillow image, and `ImageOptions`}
    {"type": "video", "video": a path or a list of frames, and `VideoOptions`}

The parser accepts the forms of transformers, qwen-vl-utils and the OpenAI API, those of TRL,
ms-swift and LLaMA-Factory, which have images and videos in separate columns, and ShareGPT's.
Anything else is an error that names the unknown part: no content is dropped silently. Other keys of
a message than role and content are passed to the chat template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .columns import MediaColumns
from .media import shorten
from .parts import KINDS, read_part, read_text
from .visual_options import ImageOptions, VideoOptions, read_options

Message = dict[str, Any]
MEDIA_KEYS = (
    *("image", "images", "image_url", "image_urls", "image_path", "image_paths", "pixel_values"),
    *("video", "videos", "video_url", "video_path", "audio", "audios", "input_audio"),
    *("bytes", "path", "url", "base64", "media", "medias", "files", "attachments", "objects"),
)
"""Keys of a message or record that may contain media; an error where they are not supported."""
_ROLES = {"human": "user", "gpt": "assistant"}
_KNOWN_ROLES = ("user", "assistant", "system", "tool")


@dataclass(frozen=True)
class VisualSource:
    """An image or video as given in a message; `data` is None for a placeholder."""

    kind: Literal["image", "video"]
    data: Any
    options: ImageOptions | VideoOptions


def parse_messages(
    messages: object,
    *,
    images: object = None,
    videos: object = None,
    folder: Path | None = None,
    allow_placeholders: bool = False,
) -> list[Message]:
    """Parse messages of any supported form.

    Args:
        messages: a list of objects with `role` and `content`, or with `from` and `value`.
        images: the column of images, one entry or a list; None: there is no column. Each part
            `{"type": "image"}` without data and each mark `<image>` in a text uses the next entry.
            Without a column, marks are text.
        videos: the same for videos and `<video>`.
        folder: base of relative paths; None: the current directory.
        allow_placeholders: whether parts without data are allowed if there is no column.

    Returns:
        Messages in the module's form. Their files exist, but have not been read.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: the messages have another form, or a part has no data.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise ValueError(f"messages {shorten(messages)}: must be a list of at least one message")
    columns = MediaColumns(images, videos, allow_placeholders=allow_placeholders)
    parsed = [_message(message, columns, folder) for message in messages]
    columns.check_counts()
    return parsed


def strip_media(messages: Sequence[Any]) -> list[Any]:
    """Replace the images and videos of messages of any form by placeholders."""
    return [
        {**message, "content": [_strip(part) for part in message["content"]]}
        if isinstance(message, Mapping) and isinstance(message.get("content"), list | tuple)
        else message
        for message in messages
    ]


def _strip(part: Any) -> Any:
    kind = KINDS.get(str(part.get("type")), "text") if isinstance(part, Mapping) else "text"
    return part if kind == "text" else {"type": kind}


def split_messages(messages: Sequence[Message]) -> tuple[list[Message], list[VisualSource]]:
    """Separate messages into messages with placeholders and visuals in order of appearance.

    Args:
        messages: result of `parse_messages`.
    """
    stripped: list[Message] = []
    sources: list[VisualSource] = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            sources += [_source(part) for part in content if part["type"] != "text"]
            content = [
                dict(part) if part["type"] == "text" else {"type": part["type"]} for part in content
            ]
        stripped.append({**message, "content": content})
    return stripped, sources


def _source(part: Mapping[str, Any]) -> VisualSource:
    if part["type"] == "image":
        return VisualSource("image", part.get("image"), read_options(ImageOptions, part))
    return VisualSource("video", part.get("video"), read_options(VideoOptions, part))


def _message(message: object, columns: MediaColumns, folder: Path | None) -> Message:
    if not isinstance(message, Mapping):
        raise ValueError(f"message {shorten(message)}: must be an object with role and content")
    given = {key: value for key, value in message.items() if value is not None}
    fields = given
    if "from" in given and "role" not in given:
        fields = {"role" if key == "from" else key: value for key, value in given.items()}
        if "content" not in fields and "value" in fields:
            fields["content"] = fields.pop("value")
    role = _role(fields.pop("role", None), message)
    unsupported = [key for key in fields if key in MEDIA_KEYS or not isinstance(key, str)]
    if unsupported:
        raise ValueError(
            f"message with the key {shorten(unsupported[0])}: not supported there; put images and "
            "videos into the content as parts"
        )
    if "content" not in fields:
        if "tool_calls" not in fields:
            raise ValueError(f"message {shorten(message)}: needs a role and content")
        fields["content"] = ""
    return {"role": role, **fields, "content": _content(fields["content"], columns, folder)}


def _role(role: object, message: object) -> str:
    if not isinstance(role, str) or not role:
        raise ValueError(f"message {shorten(message)}: needs a role and content")
    role = _ROLES.get(role, role)
    if role not in _KNOWN_ROLES:
        allowed = ", ".join((*_KNOWN_ROLES, *_ROLES))
        raise ValueError(f"message of role {shorten(role)}; allowed: {allowed}")
    return role


def _content(content: object, columns: MediaColumns, folder: Path | None) -> str | list[Message]:
    if isinstance(content, str):
        parts = list(columns.fill(read_text(content), folder))
        return content if all(part["type"] == "text" for part in parts) else parts
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise ValueError(
            f"content {shorten(content)}: allowed: a text, or a list of parts with a type"
        )
    parsed = (read_part(part, folder) for part in content)
    return [filled for part in parsed for filled in columns.fill(part, folder)]
