"""The verb `generate` of the Python API: one prompt, answered token by token."""

from __future__ import annotations

from typing import Any

from ..common.options import elements, verb
from ..common.threads import use_threads
from ..model.generation import Sampling
from ..model.generation import generate as generate_tokens
from ..model.speculation.decoding import Speculated, generate_with_drafts
from .config import GenerateOptions
from .drafting import check_draft, open_drafter
from .resolve import Source


@verb(GenerateOptions)
def generate(options: GenerateOptions) -> dict[str, Any]:
    """Answer one prompt about images or a video; the video precedes the images.

    Returns:
        The answer, the numbers of prompt and answer tokens, and whether a stop token ended it; with
        a draft, `draft` has the numbers of passes, drafts and accepted drafts.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file cannot be read, the model cannot be opened, or the draft does not suit
            it.
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
    messages = [{"role": "user", "content": content}]
    prompt = processor.encode(messages)
    name = None if options.draft is None else str(options.draft)
    draft = None if name is None else check_draft(name, source, processor)
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

    arguments: dict[str, Any] = {
        "max_new_tokens": options.max_new_tokens,
        "stop_ids": processor.stop_ids,
        "sampling": sampling,
    }
    speculation: dict[str, Any] = {}
    if name is None:
        (generated,) = generate_tokens(model, [prompt], on_token=on_token, **arguments)
    else:
        drafter = open_drafter(name, draft, source, model, prompt, messages)
        speculated = generate_with_drafts(
            model,
            prompt,
            drafter,
            draft_tokens=options.draft_tokens,
            on_token=lambda token: on_token(0, token),
            **arguments,
        )
        generated, speculation = speculated.generated, {"draft": describe_drafts(name, speculated)}
    answer = processor.decode(generated.token_ids)
    emit(answer)
    return {
        "model": source.name,
        "question": options.prompt,
        "answer": answer,
        "prompt_tokens": len(prompt),
        "tokens": len(generated.token_ids),
        "stopped": generated.stopped,
        **speculation,
    }


def describe_drafts(name: str, speculated: Speculated) -> dict[str, Any]:
    """Return the figures of a speculated answer as JSON values; shares are None without a draft."""
    drafted = speculated.drafted
    return {
        "name": name,
        "passes": speculated.passes,
        "drafted": drafted,
        "accepted": speculated.accepted,
        "accepted_share": speculated.accepted / drafted if drafted else None,
        "tokens_per_pass": speculated.tokens_per_pass,
    }
