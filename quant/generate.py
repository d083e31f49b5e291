"""One question to a model, the answer written out as it is found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..model.generation import Sampling
from ..model.generation import generate as generate_tokens
from .config import Settings
from .resolve import Source


def answer(
    model: str,
    question: str,
    *,
    images: Sequence[str | Path] = (),
    video: str | Path | None = None,
    max_new_tokens: int,
    sampling: Sampling,
    settings: Settings,
    on_text: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Ask a model about images or a video.

    Args:
        model: as `Source.find` takes it.
        question: the text behind the images.
        images: in order; files, URLs or encoded images, as in chat messages.
        video: a video file or its `file://` URL, shown before the images.
        max_new_tokens: length at which the answer is cut off.
        sampling: how tokens are chosen.
        settings: how the model is opened.
        on_text: gets each new piece of the answer.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file cannot be read, or the model cannot be opened.
    """
    source = Source.find(model, settings)
    processor = source.processor()
    content: list[dict[str, Any]] = []
    if video is not None:
        content.append({"type": "video", "video": video})
    content += [{"type": "image", "image": image} for image in images]
    content.append({"type": "text", "text": question})
    prompt = processor.encode([{"role": "user", "content": content}])
    loaded = source.load()
    tokens: list[int] = []
    shown = ""

    def on_token(_: int, token: int) -> None:
        nonlocal shown
        tokens.append(token)
        text = processor.decode(tokens)
        # A character may need several tokens; until it is whole it decodes to this one.
        if on_text is not None and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            on_text(text[len(shown) :])
            shown = text

    (generated,) = generate_tokens(
        loaded,
        [prompt],
        max_new_tokens=max_new_tokens,
        stop_ids=processor.stop_ids,
        sampling=sampling,
        on_token=on_token,
    )
    text = processor.decode(generated.token_ids)
    if on_text is not None:
        on_text(text[len(shown) :])
    return {
        "model": model,
        "question": question,
        "answer": text,
        "prompt_tokens": len(prompt),
        "tokens": len(generated.token_ids),
        "stopped": generated.stopped,
    }
