"""Chat messages: taking the pictures and videos out, so that a template sees text and placeholders.

Messages have the form that chat templates of vision-language models read: a list of
`{"role": ..., "content": ...}` with content a string or a list of parts such as
`{"type": "text", "text": ...}` or `{"type": "image", "image": ...}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

PART_TYPES = ("text", "image", "image_url", "video")


@dataclass(frozen=True)
class VisualSource:
    """A picture or video as the message gives it; `data` is None for a bare placeholder."""

    kind: Literal["image", "video"]
    data: Any
    fps: float | None = None  # of a video; None: the default


def split_messages(
    messages: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[VisualSource]]:
    """Messages with bare placeholders, and the visuals in order of appearance.

    Raises:
        ValueError: A message or part has another form.
    """
    plain: list[dict[str, Any]] = []
    sources: list[VisualSource] = []
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise ValueError(
                f"message {_short(message)}: needs a role and content; "
                'write {"role": "user", "content": ...}'
            )
        content = message["content"]
        if isinstance(content, str):
            plain.append(dict(message))
            continue
        parts = []
        for part in _parts(content):
            visual = _visual(part)
            if visual is None:
                parts.append({"type": "text", "text": _text(part)})
            else:
                sources.append(visual)
                parts.append({"type": visual.kind})
        plain.append({**message, "content": parts})
    return plain, sources


def _parts(content: object) -> Sequence[Mapping[str, Any]]:
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        raise ValueError(
            f"content {_short(content)}: allowed: a string, or a list of parts with a type of "
            f"{', '.join(PART_TYPES)}"
        )
    return content


def _visual(part: Mapping[str, Any]) -> VisualSource | None:
    kind = part.get("type")
    if kind not in PART_TYPES:
        raise ValueError(f"content part of type {kind!r}; allowed: {', '.join(PART_TYPES)}")
    if kind == "image":
        return VisualSource("image", part.get("image"))
    if kind == "image_url":
        url = part.get("image_url")
        return VisualSource("image", url.get("url") if isinstance(url, Mapping) else url)
    if kind == "video":
        fps = part.get("fps")
        return VisualSource("video", part.get("video"), None if fps is None else float(fps))
    return None


def _text(part: Mapping[str, Any]) -> str:
    text = part.get("text")
    if not isinstance(text, str):
        raise ValueError(f"text part {_short(part)}: its text is not a string")
    return text


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
