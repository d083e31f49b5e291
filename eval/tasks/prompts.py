"""Prompt layouts: the two that VLMEvalKit uses for Qwen models.

`vlmevalkit-qwen2` is the layout of the model (Qwen2-VL entries), `vlmevalkit-default` that of the
dataset (Qwen2.5-VL entries since February 2025, and Qwen3-VL entries). They differ in suffixes, in
a trailing space and newline, and in the position of MMMU's images; each difference changes scores.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .files.image_store import StoredImage
from .files.rows import Faults, Row

QWEN2 = "vlmevalkit-qwen2"
DEFAULT = "vlmevalkit-default"
STYLES = (QWEN2, DEFAULT)
_ALIASES = {"qwen2-vl": QWEN2, "default": DEFAULT}
_FAMILY_STYLES = {
    "qwen2_vl": QWEN2,
    "qwen2_5_vl": DEFAULT,
    "qwen3_vl": DEFAULT,
    "qwen3_vl_moe": DEFAULT,
    "qwen3_5": DEFAULT,
    "qwen3_5_moe": DEFAULT,
    "llava": DEFAULT,
    "llava_qwen2": DEFAULT,
    "qwen": DEFAULT,
}

Content = list[dict[str, Any]]
Builder = Callable[[Row, str], Content]

SELECT = "Please select the correct answer from the options above. \n"
SELECT_CN = "请直接回答选项字母。"
SHORT_WORDS = "\nPlease try to answer the question with short words or phrases if possible."
SINGLE_WORD = "\nAnswer the question using a single word or phrase."
_CJK = re.compile("[\u4e00-\u9fff]")
_PLACEHOLDER = re.compile(r"<image (\d)>")


def find_prompt_style(name: str) -> str:
    """Resolve the name or alias of a style.

    Raises:
        ValueError: the name is unknown.
    """
    style = _ALIASES.get(name, name)
    if style not in STYLES:
        raise ValueError(
            f"unknown prompt style {name!r}; choose one of {', '.join((*STYLES, *_ALIASES))}"
        )
    return style


def default_prompt_style(family: str) -> str:
    """Return the style of a model family's published scores.

    Raises:
        ValueError: the family is unknown.
    """
    if family not in _FAMILY_STYLES:
        raise ValueError(
            f"no default prompt style for model family {family!r}; "
            f"known families: {', '.join(_FAMILY_STYLES)}"
        )
    return _FAMILY_STYLES[family]


def question_block(row: Row) -> str:
    """Format hint, question and options, each on its own line, ending in a newline."""
    lines = [f"Hint: {row['hint']}"] if row.get("hint") else []
    lines.append(f"Question: {row['question']}")
    if row.options:
        lines.append("Options:")
        lines += [f"{letter}. {text}" for letter, text in row.options.items()]
    return "\n".join(lines) + "\n"


def has_chinese(text: str) -> bool:
    """Whether any character is in the range U+4E00 to U+9FFF."""
    return _CJK.search(text) is not None


def images_first(row: Row, text: str) -> Content:
    """Build content of all images, then the text with its placeholders unchanged."""
    return [*map(image_part, row.images), text_part(text)]


def interleave(row: Row, text: str) -> Content:
    """Replace `<image N>` (one digit) by the images; without placeholders, images come first.

    Raises:
        ValueError: the number of a placeholder exceeds the number of images.
    """
    pieces = _PLACEHOLDER.split(text)
    if len(pieces) == 1:
        return images_first(row, text)
    content: Content = []
    for index, piece in enumerate(pieces):
        if index % 2 == 0:  # text; the odd pieces are placeholder numbers
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


def find_placeholder_faults(rows: Iterable[Row]) -> Faults:
    """Return the rows whose question or options name an image that they do not have."""
    faults: Faults = {}
    for row in rows:
        try:
            interleave(row, question_block(row))
        except ValueError as error:
            faults[row.index] = str(error)
    return faults


def prompt_hash(builder: Builder, style: str) -> str:
    """Hash the prompts of fixed probe rows: the hash changes with any template."""
    probes: list[Mapping[str, str]] = [
        {"question": "q", "hint": "h", "A": "a", "B": "b"},
        {"question": "问", "A": "甲", "B": "<image 2>"},
        {"question": "<image 1> q"},
    ]
    images = (StoredImage.of(b"1"), StoredImage.of(b"2"))
    rows = [Row(i, values, images) for i, values in enumerate(probes)]
    # Stored hashes were made when the class of images was called Picture.
    rendered = [
        [repr(part).replace("StoredImage(", "Picture(") for part in builder(row, style)]
        for row in rows
    ]
    return hashlib.sha256(json.dumps(rendered).encode()).hexdigest()


def image_part(image: StoredImage) -> dict[str, Any]:
    """Build a content part of an image."""
    return {"type": "image", "image": image}


def text_part(text: str) -> dict[str, Any]:
    """Build a content part of text."""
    return {"type": "text", "text": text}
