"""Calibration samples, their digests and fingerprints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...model.processing.images import ImageSource, open_image

Message = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One conversation for calibration."""

    messages: list[Message]
    """Chat messages with images and videos in their content parts, up to the answer."""
    answer: str
    """If empty, the sample is the conversation alone."""
    id: str


def image_digest(image: ImageSource) -> str:
    """Return the sha256 of an image's size and RGB pixels, independent of its encoding.

    Args:
        image: PIL image, encoded bytes, path, or `data:` URL.
    """
    pixels = open_image(image)
    head = f"{pixels.width}x{pixels.height}:".encode()
    return hashlib.sha256(head + pixels.tobytes()).hexdigest()


def image_digests(samples: Iterable[Sample]) -> set[str]:
    """Return the digests of all images in the samples, including video frames given as images.

    They are compared with those of an evaluation set. Video files are not decoded.
    """
    return {
        image_digest(image)
        for sample in samples
        for part in _visual_parts(sample)
        for image in _images(part)
    }


def has_images(sample: Sample) -> bool:
    """Return whether a sample has an image or video."""
    return any(True for _ in _visual_parts(sample))


def fingerprint(samples: Sequence[Sample]) -> str:
    """Return the sha256 of ids, texts, answers and pixels in order; it identifies a calibration."""
    digest = hashlib.sha256()
    for sample in samples:
        record = [sample.id, _describe(sample.messages), sample.answer]
        digest.update(json.dumps(record, sort_keys=True, ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def content_digest(sample: Sample) -> str:
    """Return the sha256 of a sample's texts, pixels and answer, independent of its id."""
    record = [_describe(sample.messages), sample.answer]
    text = json.dumps(record, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _visual_parts(sample: Sample) -> Iterator[Mapping[str, Any]]:
    for message in sample.messages:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] in ("image", "video"):
                yield part


def _images(part: Mapping[str, Any]) -> Sequence[Any]:
    if part["type"] == "image":
        return [part["image"]]
    return part["video"] if isinstance(part["video"], list) else []


def _describe(messages: Iterable[Message]) -> list[Any]:
    """Return the messages with images and videos replaced by their digests."""
    return [
        [message["role"], message["content"]]
        if isinstance(message["content"], str)
        else [message["role"], [_describe_part(part) for part in message["content"]]]
        for message in messages
    ]


def _describe_part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "image":
        return {**part, "image": image_digest(part["image"])}
    if part["type"] == "video":
        video = part["video"]
        if isinstance(video, str | Path):
            return {**part, "video": hashlib.sha256(Path(video).read_bytes()).hexdigest()}
        return {**part, "video": [image_digest(frame) for frame in video]}
    return dict(part)
