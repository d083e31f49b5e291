"""Comparisons of prompts and scores with those that VLMEvalKit computed."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import checks
from PIL import Image

from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.benchmarks import chartqa, docvqa, textvqa
from vlpress.eval.tasks.extract import extract_choice
from vlpress.eval.tasks.files.image_store import StoredImage
from vlpress.eval.tasks.prompts import STYLES
from vlpress.eval.tasks.task import Task, TaskScore

MODEL, PHRASED = "tiny", "phrased"
"""Sets of answers: of the model, and right and wrong ones in other words."""
SHORT_ANSWERS = (docvqa.METRIC, chartqa.METRIC, textvqa.METRIC)
ROUNDING = 1e-9  # another order of summation

Part = tuple[str, str]
Answers = Mapping[str, str]


def split_by_hit(task: Task, sets: Mapping[str, Answers]) -> dict[str, dict[str, str]]:
    """Split each set of answers into the right and the wrong ones.

    VLMEvalKit's scorer of OCRBench returns sums only. If it counts all of the first part and none
    of the second, it agrees on every answer.
    """
    parts: dict[str, dict[str, str]] = {}
    for title, answers in sets.items():
        right = {unit.id for unit in task.score(answers).units if unit.correct}
        parts[f"{title}-right"] = {key: text for key, text in answers.items() if key in right}
        parts[f"{title}-wrong"] = {key: text for key, text in answers.items() if key not in right}
    return parts


def compare_prompts(
    name: str, theirs: Mapping[str, Mapping[str, Sequence[Part]]], data: Path, *, jpeg: bool
) -> checks.Compared:
    """Compare rows, texts and pixels of the prompts in both layouts.

    Args:
        name: a key of `DATASETS`.
        theirs: layout -> id -> prompt.
        data: folder of the files.
        jpeg: whether images may have been encoded as JPEG.
    """
    same_rows, prompts, texts, pixels, encoded = True, 0, 0, 0, 0
    for style in STYLES:
        items = {
            item.id: item for item in open_task(name, prompt_style=style, data_root=data).items
        }
        same_rows &= list(theirs[style]) == list(items)
        prompts += len(items)
        for key, item in items.items():
            parts = [(kind, value) for kind, value in theirs[style].get(key, ())]
            texts += texts_of(parts) == texts_of(map(describe, item.messages[0]["content"]))
            images = [value for kind, value in parts if kind == "image"]
            exact = images == [digest_pixels(image.open()) for image in item.images]
            pixels += exact
            encoded += exact or images == list(map(digest_jpeg, item.images))
    yield "rows", f"{prompts // len(STYLES)}, in the same order", same_rows
    yield "texts of both layouts", f"{texts} of {prompts} prompts equal", texts == prompts
    result = f"{pixels} of {prompts} prompts equal"
    if jpeg:
        result += f", {encoded} after encoding as JPEG"
    yield "pixels", result, (encoded if jpeg else pixels) == prompts


def texts_of(parts: Iterable[Part]) -> list[str]:
    """Texts of a prompt, with an empty one in place of each image."""
    parts = [part for part in parts if part != ("text", "")]
    return [text if kind == "text" else "" for kind, text in parts]


def describe(part: Mapping[str, Any]) -> Part:
    """Describe a part of a prompt as `texts_of` reads it."""
    return ("text", part["text"]) if part["type"] == "text" else ("image", "")


def digest_pixels(image: Image.Image) -> str:
    """Digest of size and pixels, as in `workers/vlmevalkit/judge.py`."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def digest_jpeg(image: StoredImage) -> str:
    """Digest of an image's pixels after encoding as JPEG with Pillow's default quality."""
    encoded = io.BytesIO(encode(image.open(), "JPEG"))
    return digest_pixels(Image.open(encoded).convert("RGB"))


def encode(image: Image.Image, format: str) -> bytes:
    """Encode an image with Pillow's defaults."""
    buffer = io.BytesIO()
    image.save(buffer, format=format)
    return buffer.getvalue()


def compare_scores(
    task: Task, sets: Mapping[str, Answers], theirs: Mapping[str, Any]
) -> checks.Compared:
    """Compare the results tables and every question, for each set of answers."""
    for title in [title for title in (MODEL, PHRASED) if title in sets]:
        score = task.score(sets[title])
        named = f"of {MODEL}" if title == MODEL else "in other words"
        entry = theirs[title]
        if entry["hits"] is None:
            same = score.table.items() <= entry["table"].items()
            points = [
                theirs[f"{title}-{part}"]["table"]["Final Score"] for part in ("right", "wrong")
            ]
            agreed = points[0] + (len(sets[f"{title}-wrong"]) - points[1])
        else:
            same = tables_equal(entry["table"], score)
            hits = entry["hits"]
            agreed = sum(abs(hits.get(u.id, -1) - u.value) < ROUNDING for u in score.units)
        number = len(score.units)
        scores = f"score {score.percent:.4f}, {agreed} of {number} questions as here"
        if not same:
            scores += ", another table"
        yield f"scores of answers {named}", scores, same and agreed == number


def tables_equal(records: Sequence[Mapping[str, Any]], score: TaskScore) -> bool:
    """Whether a results table has the same splits, names and numbers.

    Of benchmarks of short answers, the same means in percent: of all questions and of each split.
    """
    if score.metric in SHORT_ANSWERS:
        splits = {split: 100 * row["Overall"] for split, row in score.table.items()}
        splits = {} if "none" in splits else splits
        ours = {**splits, "Overall": score.percent}
        return ours.keys() == records[0].keys() and all(
            abs(records[0][key] - value) < ROUNDING for key, value in ours.items()
        )
    theirs = {
        str(record["split"]): {k: v for k, v in record.items() if k != "split"}
        for record in records
    }
    ours = {split: dict(row) for split, row in score.table.items()}
    return theirs.keys() == ours.keys() and all(
        theirs[split].keys() == ours[split].keys()
        and all(abs(theirs[split][key] - value) < ROUNDING for key, value in ours[split].items())
        for split in ours
    )


def compare_letters(
    phrases: Sequence[Mapping[str, Any]], letters: Sequence[str | None], profile: str
) -> checks.Compared:
    """Compare the extracted options of hand-written answers on which the profiles differ."""
    ours = [extract_choice(p["prediction"], p["choices"], profile) for p in phrases]
    agreed = sum(a == b for a, b in zip(letters, ours, strict=True))
    differing = sum(p["2024"] != p["2025-08"] for p in phrases)
    result = f"{agreed} of {len(ours)} as here; {differing} differ between 2024 and 2025-08"
    yield "options of hand-written answers", result, agreed == len(ours) and differing > 0
