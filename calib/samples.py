"""Calibration samples: where they come from and what they are.

A sample is a conversation with its pictures and the answer. Sources: the built-in drawings, a JSONL
file, a `datasets` dataset (local folder or hub id), a plain text file. A JSONL line is

    {"image": "cat.png", "question": "What is this?", "answer": "A cat."}
    {"messages": [{"role": "user", "content": [...]}, {"role": "assistant", "content": "A cat."}]}

with `image` (or a list in `images`) a path relative to the file, a `data:` URL or base64. Pictures
stay encoded until they are needed; each chosen one is decoded once here, so that a broken file is
reported with its line.
"""

import base64
import binascii
import hashlib
import json
import logging
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..model.images import ImageSource, open_image

logger = logging.getLogger(__name__)

Message = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One conversation to calibrate on."""

    messages: list[Message]
    """Chat form, the pictures inside the content parts; ends before the answer."""
    answer: str
    id: str


def load_samples(source: str | Path | None, *, n: int, seed: int) -> list[Sample]:
    """Draw `n` samples from a source, in the source's order.

    Args:
        source: None or "synthetic" for the built-in drawings; a .jsonl or .txt file; a folder
            written by `datasets` or readable by it; otherwise a dataset's hub id.
        n: samples wanted; a smaller source is used whole, with a warning.
        seed: of the draw.

    Raises:
        FileNotFoundError: a file that is named does not exist.
        ValueError: the source is empty or an entry is unusable (file and line are named).
    """
    if n < 1:
        raise ValueError(f"{n} calibration samples were asked for; it must be at least 1")
    if source is None or str(source) == "synthetic":
        from .synthetic import calibration_samples

        return calibration_samples(n, seed)
    path = Path(source)
    if path.suffix.lower() in (".jsonl", ".txt"):
        if not path.is_file():
            raise FileNotFoundError(f"calibration file {path} does not exist")
        reader = _jsonl if path.suffix.lower() == ".jsonl" else _paragraphs
        count, get = reader(path)
    elif path.is_file():
        raise ValueError(
            f"calibration file {path}: unknown type {path.suffix!r}; use .jsonl or .txt, "
            "or a datasets folder"
        )
    else:
        count, get = _dataset(str(source))
    if count == 0:
        raise ValueError(f"calibration source {source} has no samples")
    if count < n:
        logger.warning("calibration source %s has only %d samples, %d wanted", source, count, n)
    return [get(index) for index in _draw(count, n, seed)]


def image_digest(image: ImageSource) -> str:
    """sha256 of a picture's size and RGB pixels, however it is stored.

    Args:
        image: PIL image, encoded bytes, path, or `data:` URL.
    """
    pixels = open_image(image)
    head = f"{pixels.width}x{pixels.height}:".encode()
    return hashlib.sha256(head + pixels.tobytes()).hexdigest()


def image_digests(samples: Iterable[Sample]) -> set[str]:
    """Digests of all still pictures in the samples; compare with an evaluation set's."""
    return {image_digest(image) for sample in samples for image in _images(sample.messages)}


def has_pictures(sample: Sample) -> bool:
    """Whether there is a picture or video in it."""
    return any(
        part["type"] in ("image", "video")
        for message in sample.messages
        if isinstance(message["content"], list)
        for part in message["content"]
    )


def fingerprint(samples: Sequence[Sample]) -> str:
    """sha256 over ids, texts, answers and pixels, in order: equal means the same calibration."""
    digest = hashlib.sha256()
    for sample in samples:
        record = [sample.id, _describe(sample.messages), sample.answer]
        digest.update(json.dumps(record, sort_keys=True, ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _draw(count: int, n: int, seed: int) -> list[int]:
    if count <= n:
        return list(range(count))
    return sorted(random.Random(seed).sample(range(count), n))


Source = tuple[int, Callable[[int], Sample]]


def _jsonl(path: Path) -> Source:
    lines = [
        (number, line)
        # Not splitlines: JSON strings may hold line separators of Unicode as they are.
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1)
        if line.strip()
    ]

    def get(index: int) -> Sample:
        number, line = lines[index]
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"a line must be an object, found {type(record).__name__}")
            return _sample(record, path.parent, f"{path.name}:{number}")
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not valid JSON ({error.msg})") from None
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None

    return len(lines), get


def _paragraphs(path: Path) -> Source:
    text = path.read_text(encoding="utf-8")
    parts = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    return len(parts), lambda index: Sample(_ask(parts[index]), "", f"{path.name}#{index + 1}")


def _dataset(source: str) -> Source:
    import datasets  # type: ignore[import-untyped]  # ships no annotations

    folder = Path(source)
    if not folder.is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise FileNotFoundError(
            f"calibration source {source} does not exist; give a .jsonl or .txt file, "
            "a datasets folder or a hub id"
        )
    saved = any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        data = datasets.load_from_disk(source) if saved else datasets.load_dataset(source)
    except Exception as error:  # datasets raises a dozen unrelated types
        line = str(error).strip().splitlines()
        raise ValueError(
            f"calibration dataset {source} cannot be loaded: {line[0] if line else error!r}"
        ) from None
    if isinstance(data, dict):
        split = "train" if "train" in data else next(iter(data))
        logger.info("calibration dataset %s: split %s of %s", source, split, list(data))
        data = data[split]

    def get(index: int) -> Sample:
        try:
            return _sample(dict(data[index]), folder, f"{folder.name}[{index}]")
        except ValueError as error:
            raise ValueError(f"{source}, row {index}: {error}") from None

    return len(data), get


def _sample(record: Mapping[str, Any], folder: Path, name: str) -> Sample:
    """One record of a JSONL file or a dataset."""
    answer = record.get("answer")
    if isinstance(messages := record.get("messages"), list):
        messages = [_message(message, folder) for message in messages]
        if answer is None and messages and messages[-1]["role"] == "assistant":
            answer = _text(messages.pop()["content"])
        if not any(message["role"] == "user" for message in messages):
            raise ValueError("messages have no user turn")
    elif isinstance(question := record.get("question"), str):
        images = record.get("images", record.get("image"))
        listed = images if isinstance(images, list) else [] if images is None else [images]
        messages = _ask(question, [_image(image, folder) for image in listed])
    elif isinstance(text := record.get("text"), str):
        return Sample(_ask(text), "", name)
    else:
        raise ValueError(
            f"found keys {', '.join(map(str, record)) or 'none'}; needed are question and answer "
            "(and image), or messages, or text"
        )
    if not isinstance(answer, str):
        raise ValueError("no answer: give 'answer' as text, or end messages with the assistant")
    return Sample(messages, answer, str(record.get("id", name)))


def _ask(question: str, images: Sequence[Any] = ()) -> list[Message]:
    content = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def _message(message: Any, folder: Path) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError(f"a message must have a role and content, found {message!r:.80}")
    content = message.get("content")
    if isinstance(content, str):
        return {"role": message["role"], "content": content}
    if not isinstance(content, list):
        raise ValueError(f"content must be text or a list of parts, found {content!r:.80}")
    return {"role": message["role"], "content": [_part(part, folder) for part in content]}


def _part(part: Any, folder: Path) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "image" and part.get("image") is not None:
        return {"type": "image", "image": _image(part["image"], folder)}
    if kind == "video" and isinstance(part.get("video"), str):
        path = folder / part["video"]
        if not path.is_file():
            raise ValueError(f"video {path} does not exist")
        return {"type": "video", "video": str(path)}
    raise ValueError(f"a content part must be text, image or video, found {part!r:.80}")


def _image(value: Any, folder: Path) -> Any:
    """Resolve a picture to bytes, a path or a PIL image, and prove that it decodes."""
    if isinstance(value, Mapping):  # an undecoded `datasets` image
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and not value.startswith("data:"):
        value = _path_or_base64(value, folder)
    open_image(value)
    return value


def _path_or_base64(value: str, folder: Path) -> str | bytes:
    # 1024: longer than any sensible path, and the system refuses to look long names up.
    if len(value) <= 1024 and (folder / value).is_file():
        return str(folder / value)
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(
            f"image {value[:80]!r} is neither a file in {folder} nor valid base64"
        ) from None


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def _images(messages: Iterable[Message]) -> Iterator[Any]:
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "image":
                yield part["image"]


def _describe(messages: Iterable[Message]) -> list[Any]:
    """The messages with every picture replaced by its digest, and every video by its bytes'."""
    return [
        [message["role"], message["content"]]
        if isinstance(message["content"], str)
        else [message["role"], [_describe_part(part) for part in message["content"]]]
        for message in messages
    ]


def _describe_part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "image":
        return {"type": "image", "image": image_digest(part["image"])}
    if part["type"] == "video":
        video = part["video"]
        if isinstance(video, str | Path):
            content = hashlib.sha256(Path(video).read_bytes()).hexdigest()
            return {"type": "video", "video": content}
        return {"type": "video", "video": [image_digest(frame) for frame in video]}
    return dict(part)
