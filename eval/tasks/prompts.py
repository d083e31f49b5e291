"""How a row becomes a prompt: the two layouts VLMEvalKit uses for Qwen models.

`vlmevalkit-qwen2` is the model's own layout (Qwen2-VL entries), `vlmevalkit-default` the
dataset's (Qwen2.5-VL entries since February 2025). They differ by suffixes, by a trailing space
and newline, and by where MMMU's pictures stand; each difference moves scores.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from .files.image_store import Picture
from .files.table import Row

QWEN2 = "vlmevalkit-qwen2"
DEFAULT = "vlmevalkit-default"
STYLES = (QWEN2, DEFAULT)
_ALIASES = {"qwen2-vl": QWEN2, "default": DEFAULT}
_FAMILY_STYLES = {"qwen2_vl": QWEN2, "qwen2_5_vl": DEFAULT}

Content = list[dict[str, Any]]
Builder = Callable[[Row, str], Content]

SELECT = "Please select the correct answer from the options above. \n"
SELECT_CN = "请直接回答选项字母。"
SHORT_WORDS = "\nPlease try to answer the question with short words or phrases if possible."
_CJK = re.compile("[\u4e00-\u9fff]")
_PLACEHOLDER = re.compile(r"<image (\d)>")


def prompt_style(name: str) -> str:
    """Normalize a style's name.

    Raises:
        ValueError: no such style.
    """
    style = _ALIASES.get(name, name)
    if style not in STYLES:
        raise ValueError(
            f"unknown prompt style {name!r}; choose one of {', '.join((*STYLES, *_ALIASES))}"
        )
    return style


def default_prompt_style(family: str) -> str:
    """The style a model family's published scores were taken with.

    Raises:
        ValueError: unknown family.
    """
    if family not in _FAMILY_STYLES:
        raise ValueError(
            f"no default prompt style for model family {family!r}; "
            f"known families: {', '.join(_FAMILY_STYLES)}"
        )
    return _FAMILY_STYLES[family]


def question_block(row: Row) -> str:
    """Hint, question and options, each on its own line, ending in a newline."""
    lines = [f"Hint: {row['hint']}"] if row.get("hint") else []
    lines.append(f"Question: {row['question']}")
    if row.options:
        lines.append("Options:")
        lines += [f"{letter}. {text}" for letter, text in row.options.items()]
    return "\n".join(lines) + "\n"


def has_chinese(text: str) -> bool:
    """Whether any character lies in U+4E00..U+9FFF."""
    return _CJK.search(text) is not None


def images_first(row: Row, text: str) -> Content:
    """All pictures, then the text with any placeholder left as it is."""
    return [*map(image_part, row.images), text_part(text)]


def interleave(row: Row, text: str) -> Content:
    """Put pictures where `<image N>` stands (one digit); without any, pictures come first.

    Raises:
        ValueError: a placeholder's number exceeds the row's pictures.
    """
    pieces = _PLACEHOLDER.split(text)
    if len(pieces) == 1:
        return images_first(row, text)
    content: Content = []
    for place, piece in enumerate(pieces):
        if place % 2 == 0:
            content += [text_part(piece)] if piece else []
            continue
        number = int(piece)
        if not 1 <= number <= len(row.images):
            raise ValueError(
                f"row {row.index} names <image {number}> but holds {len(row.images)} pictures; "
                "fetch or repair the file"
            )
        content.append(image_part(row.images[number - 1]))
    return content


def prompt_hash(builder: Builder, style: str) -> str:
    """Digest of what a builder makes of fixed probe rows: changes when any template does."""
    probes: list[Mapping[str, str]] = [
        {"question": "q", "hint": "h", "A": "a", "B": "b"},
        {"question": "问", "A": "甲", "B": "<image 2>"},
        {"question": "<image 1> q"},
    ]
    pictures = (Picture.of(b"1"), Picture.of(b"2"))
    rows = [Row(i, values, pictures) for i, values in enumerate(probes)]
    rendered = [[repr(part) for part in builder(row, style)] for row in rows]
    return hashlib.sha256(json.dumps(rendered).encode()).hexdigest()


def image_part(picture: Picture) -> dict[str, Any]:
    """A content part that shows an image."""
    return {"type": "image", "image": picture}


def text_part(text: str) -> dict[str, Any]:
    """A content part of text."""
    return {"type": "text", "text": text}
