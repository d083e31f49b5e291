"""Which chat template of a checkpoint folder is used, and whether it places images.

A checkpoint may hold several: the one of the processor, which knows images, and the one of the
tokenizer, which often knows text only. The order is that of transformers: the processor's come
first, from whichever file they are in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import read_checkpoint_json, refuse_pointer

PROCESSOR_FILE = "processor_config.json"
LEGACY_FILE = "chat_template.json"
FILE = "chat_template.jinja"
FOLDER = "additional_chat_templates"
TOKENIZER_FILE = "tokenizer_config.json"
DEFAULT = "default"  # of several named templates, the one that is used

QUESTION = "What is shown?"
LONGEST = 2**18  # characters; far more than any system prompt, and tokenized in an instant
PROBE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template, and the file that it was read from."""

    text: str
    file: Path


def read_chat_template(folder: Path) -> ChatTemplate:
    """Choose the chat template of a checkpoint folder.

    The first of these wins: `chat_template` of processor_config.json, chat_template.json,
    chat_template.jinja (or default.jinja in additional_chat_templates/), `chat_template` of
    tokenizer_config.json. Of named templates the one called "default" counts.

    Raises:
        ValueError: There is no template, or a file does not hold one.
    """
    for file, found in _candidates(folder):
        if found is not None:
            return ChatTemplate(_text(file, found), file)
    raise ValueError(
        f"{folder}: no chat template in {PROCESSOR_FILE}, {LEGACY_FILE}, {FILE}, {FOLDER}/ or "
        f"{TOKENIZER_FILE}; take the files of an instruction-tuned checkpoint"
    )


def _candidates(folder: Path) -> Iterator[tuple[Path, object]]:
    """Files in the order in which they are asked, and what they give; None: nothing."""
    yield folder / PROCESSOR_FILE, _entry(folder / PROCESSOR_FILE)
    legacy, named = folder / LEGACY_FILE, sorted((folder / FOLDER).glob("*.jinja"))
    if legacy.is_file() and named:
        raise ValueError(
            f"{legacy}: stands beside {named[0].relative_to(folder)}, and only one of the two can "
            f"hold the chat template; delete {LEGACY_FILE} or the folder {FOLDER}"
        )
    yield legacy, _entry(legacy)
    if (folder / FILE).is_file():
        yield folder / FILE, _read(folder / FILE)
    elif named:
        default = folder / FOLDER / f"{DEFAULT}.jinja"
        if default not in named:
            raise ValueError(
                f"{folder / FOLDER}: holds {', '.join(path.name for path in named)} but no "
                f"{default.name}, and there is no {FILE}; rename the template to use to {FILE}"
            )
        yield default, _read(default)
    yield folder / TOKENIZER_FILE, _entry(folder / TOKENIZER_FILE)


def _entry(path: Path) -> object:
    return read_checkpoint_json(path).get("chat_template") if path.is_file() else None


def _read(path: Path) -> str:
    refuse_pointer(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}); fetch the file again") from None


def _text(file: Path, found: object) -> str:
    """The template of a string, of `{name: template}` or of `[{"name", "template"}]`."""
    if isinstance(found, list) and all(isinstance(entry, Mapping) for entry in found):
        found = {str(entry.get("name")): entry.get("template") for entry in found}
    if isinstance(found, Mapping):
        names = ", ".join(map(repr, list(found)[:8])) or "nothing"
        if DEFAULT not in found:
            raise ValueError(
                f"{file}: chat_template holds {names}; name the one to use {DEFAULT!r}"
            )
        found = found[DEFAULT]
    if not isinstance(found, str):
        raise ValueError(
            f"{file}: chat_template is a {type(found).__name__}; allowed: a string, or named "
            f"templates of which one is {DEFAULT!r}; take the file from the original checkpoint"
        )
    if any("\ud800" <= letter <= "\udfff" for letter in found):
        raise ValueError(
            f"{file}: chat_template holds half of a surrogate pair, which is no text; "
            "take the file from the original checkpoint"
        )
    return found


def check_chat_template(tokenizer: Any, file: Path, image_token_id: int) -> None:
    """Render a question about an image and look for its placeholder.

    Args:
        tokenizer: A transformers tokenizer with the template set.
        file: Where the template is from, for messages.
        image_token_id: The placeholder, which must appear once.

    Raises:
        ValueError: The template fails, leaves out the image or leaves out the text.
    """
    advice = "take the chat template of the original vision-language checkpoint"
    try:
        text = _render(tokenizer, PROBE, add_generation_prompt=True)
        ids = tokenizer.encode(text[: LONGEST + 1], add_special_tokens=False)
    except Exception as error:  # a template is a program: it can fail in any way
        raise ValueError(
            f"{file}: the chat template fails for a question about an image "
            f"({one_line(error)}); {advice}"
        ) from None
    if len(text) > LONGEST:
        raise ValueError(
            f"{file}: the chat template writes {len(text)} characters around a short question; "
            f"allowed: {LONGEST}; {advice}"
        )
    count = ids.count(image_token_id)
    if count != 1:
        token = tokenizer.convert_ids_to_tokens(image_token_id)
        raise ValueError(
            f"{file}: the chat template writes {count} times {token} (id {image_token_id}) for "
            f"one image; a vision-language model needs 1; {advice}"
        )
    if QUESTION not in text:
        raise ValueError(
            f"{file}: the chat template leaves out the text that stands beside an image; {advice}"
        )


def render_chat(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool
) -> str:
    """Write messages as the chat template says.

    Args:
        tokenizer: A transformers tokenizer with the template set.
        messages: With bare placeholders for images and videos.
        add_generation_prompt: Whether the assistant's turn is opened.

    Raises:
        ValueError: The template fails for these messages.
    """
    try:
        return _render(tokenizer, messages, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # a template is a program: it can fail in any way
        roles = ", ".join(str(message.get("role"))[:20] for message in messages[:8])
        raise ValueError(
            f"the checkpoint's chat template fails for messages of the roles {roles} "
            f"({one_line(error)}); change the messages or the template"
        ) from None


def _render(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool
) -> str:
    text = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
    )
    text.encode("utf-8")  # escapes in a template can write what is no text
    return str(text)


def one_line(error: BaseException) -> str:
    """An error's message on one line, at most 200 characters; the type of most in front."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    text = text if isinstance(error, ValueError | OSError) and text else f"{name}: {text}"
    return text.removesuffix(": ")[:200]
