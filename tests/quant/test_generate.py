"""The verb `generate`: forms of images and videos, streaming."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlpress.quant.generate import generate


def prompt_tokens(checkpoint: Path, **media: Any) -> int:
    answer = generate(checkpoint, "What?", max_new_tokens=1, device="cpu", **media)
    return int(answer["prompt_tokens"])


def test_images_are_given_as_in_messages(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "an image.png"
    Image.new("RGB", (112, 84), "red").save(path)
    url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    plain = prompt_tokens(checkpoint)
    monkeypatch.chdir(tmp_path)
    images = (path, str(path), path.as_uri(), f"file://{path}", "an image.png", url)
    # 4 x 3 tokens between the two that mark an image
    assert prompt_tokens(checkpoint, image=images) == plain + 14 * len(images)


def test_missing_media_are_refused(checkpoint: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        prompt_tokens(checkpoint, image=["file:///nowhere.png"])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4"):
        prompt_tokens(checkpoint, video="file:///nowhere.mp4")
    with pytest.raises(ValueError, match="download it first"):
        prompt_tokens(checkpoint, image=["https://x.org/a.png"])


def test_text_is_streamed_to_a_callback(checkpoint: Path) -> None:
    pieces: list[str] = []
    answer = generate(checkpoint, "What?", max_new_tokens=4, device="cpu", on_text=pieces.append)
    assert "".join(pieces) == answer["answer"]
