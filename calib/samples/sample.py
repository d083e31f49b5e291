"""What a calibration sample is, and what tells it from others."""

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
    """One conversation to calibrate on."""

    messages: list[Message]
    """Chat form, images and videos inside the content parts; ends before the answer."""
    answer: str
    """Empty: calibrated on the conversation alone."""
    id: str


def image_digest(image: ImageSource) -> str:
    """sha256 of an image's size and RGB pixels, however it is stored.

    Args:
        image: PIL image, encoded bytes, path, or `data:` URL.
    """
    pixels = open_image(image)
    head = f"{pixels.width}x{pixels.height}:".encode()
    return hashlib.sha256(head + pixels.tobytes()).hexdigest()


def image_digests(samples: Iterable[Sample]) -> set[str]:
    """Digests of all images in the samples, also of frames that are given as such.

    Compare them with an evaluation set's. Video files are not looked into.
    """
    return {
        image_digest(image)
        for sample in samples
        for part in _visual_parts(sample)
        for image in _images(part)
    }


def has_pictures(sample: Sample) -> bool:
    """Whether there is an image or video in it."""
    return any(True for _ in _visual_parts(sample))


def fingerprint(samples: Sequence[Sample]) -> str:
    """sha256 over ids, texts, answers and pixels, in order: equal means the same calibration."""
    digest = hashlib.sha256()
    for sample in samples:
        record = [sample.id, _describe(sample.messages), sample.answer]
        digest.update(json.dumps(record, sort_keys=True, ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()


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
    """The messages with every image replaced by its digest, and every video by its bytes'."""
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
