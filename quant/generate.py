"""The verb `generate` of the Python API: one prompt, answered token by token."""

from __future__ import annotations

from typing import Any

from ..common.options import elements, verb
from ..common.threads import use_threads
from ..model.generation import Sampling
from ..model.generation import generate as generate_tokens
from .config import GenerateOptions
from .resolve import Source


@verb(GenerateOptions)
def generate(options: GenerateOptions) -> dict[str, Any]:
    """Answer one prompt about images or a video; the video precedes the images.

    Returns:
        The answer, the numbers of prompt and answer tokens, and whether a stop token ended it.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file cannot be read, or the model cannot be opened.
    """
    use_threads(options.threads)
    sampling = Sampling(
        options.temperature,
        options.top_p,
        options.top_k,
        options.repetition_penalty,
        options.seed or 0,
    )
    source = Source.find(options.model, options)
    processor = source.processor()
    content: list[dict[str, Any]] = []
    if options.video is not None:
        content.append({"type": "video", "video": options.video})
    content += [{"type": "image", "image": image} for image in elements(options.image)]
    content.append({"type": "text", "text": options.prompt})
    prompt = processor.encode([{"role": "user", "content": content}])
    model = source.load()
    tokens: list[int] = []
    emitted = ""

    def emit(text: str) -> None:
        nonlocal emitted
        if options.on_text is not None:
            options.on_text(text[len(emitted) :])
            emitted = text

    def on_token(_: int, token: int) -> None:
        tokens.append(token)
        text = processor.decode(tokens)
        # A character may need several tokens; an incomplete one decodes to this one.
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            emit(text)

    (generated,) = generate_tokens(
        model,
        [prompt],
        max_new_tokens=options.max_new_tokens,
        stop_ids=processor.stop_ids,
        sampling=sampling,
        on_token=on_token,
    )
    answer = processor.decode(generated.token_ids)
    emit(answer)
    return {
        "model": source.name,
        "question": options.prompt,
        "answer": answer,
        "prompt_tokens": len(prompt),
        "tokens": len(generated.token_ids),
        "stopped": generated.stopped,
    }
