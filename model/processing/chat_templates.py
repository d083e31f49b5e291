"""Selection, check and rendering of a checkpoint's chat template.

A checkpoint can contain several templates: the processor's, which supports images, and the
tokenizer's, which often supports text only. The precedence is that of transformers: the processor's
files first.
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
DEFAULT = "default"  # name of the template that is used if there are several

QUESTION = "What is shown?"
MAX_RENDERED = 2**18  # characters; far more than any system prompt, and fast to tokenize
PROBE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template and the file that contains it."""

    text: str
    file: Path


def read_chat_template(folder: Path, default: str | None = None) -> ChatTemplate:
    """Select the chat template of a checkpoint folder.

    The first that exists is used: `chat_template` of processor_config.json, chat_template.json,
    chat_template.jinja (or default.jinja in additional_chat_templates/), `chat_template` of
    tokenizer_config.json. Of several named templates it is the one called "default".

    Args:
        folder: the checkpoint folder.
        default: the template of a folder without one; None: there must be one.

    Raises:
        ValueError: there is no template, or a file has an invalid one.
    """
    for file, value in _candidates(folder):
        if value is not None:
            return ChatTemplate(_text(file, value), file)
    if default is not None:
        return ChatTemplate(default, folder)
    raise ValueError(
        f"{folder}: no chat template in {PROCESSOR_FILE}, {LEGACY_FILE}, {FILE}, {FOLDER}/ or "
        f"{TOKENIZER_FILE}; take the files of an instruction-tuned checkpoint"
    )


def _candidates(folder: Path) -> Iterator[tuple[Path, object]]:
    """Yield files in order of precedence with their templates; None: the file has none."""
    yield folder / PROCESSOR_FILE, _entry(folder / PROCESSOR_FILE)
    legacy, named = folder / LEGACY_FILE, sorted((folder / FOLDER).glob("*.jinja"))
    if legacy.is_file() and named:
        raise ValueError(
            f"{legacy}: the folder has {named[0].relative_to(folder)} too, and only one of the two "
            f"can be the chat template; delete {LEGACY_FILE} or the folder {FOLDER}"
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


def _text(file: Path, value: object) -> str:
    """Return the template of a string, `{name: template}` or `[{"name", "template"}]`."""
    if isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value):
        value = {str(entry.get("name")): entry.get("template") for entry in value}
    if isinstance(value, Mapping):
        names = ", ".join(map(repr, list(value)[:8])) or "nothing"
        if DEFAULT not in value:
            raise ValueError(
                f"{file}: chat_template holds {names}; name the one to use {DEFAULT!r}"
            )
        value = value[DEFAULT]
    if not isinstance(value, str):
        raise ValueError(
            f"{file}: chat_template is a {type(value).__name__}; allowed: a string, or named "
            f"templates of which one is {DEFAULT!r}; take the file from the original checkpoint"
        )
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(
            f"{file}: chat_template contains half of a surrogate pair, which is not valid Unicode; "
            "take the file from the original checkpoint"
        )
    return value


def check_chat_template(tokenizer: Any, file: Path, image_token_id: int) -> None:
    """Render a question about an image and check that it contains the placeholder and the text.

    Text-only templates drop images silently, so a model would answer without the image.

    Args:
        tokenizer: a transformers tokenizer with the template set.
        file: the template's file, for messages.
        image_token_id: the placeholder, which must appear once.

    Raises:
        ValueError: the template fails, drops the image or drops the text.
    """
    advice = "take the chat template of the original vision-language checkpoint"
    try:
        text = _render(tokenizer, PROBE, add_generation_prompt=True)
        ids = tokenizer.encode(text[: MAX_RENDERED + 1], add_special_tokens=False)
    except Exception as error:  # a template is a program: it can fail in any way
        raise ValueError(
            f"{file}: the chat template fails for a question about an image "
            f"({one_line(error)}); {advice}"
        ) from None
    if len(text) > MAX_RENDERED:
        raise ValueError(
            f"{file}: the chat template writes {len(text)} characters around a short question; "
            f"allowed: {MAX_RENDERED}; {advice}"
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
            f"{file}: the chat template leaves out the text of a message with an image; {advice}"
        )


def render_chat(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool
) -> str:
    """Render messages with the chat template.

    Args:
        tokenizer: a transformers tokenizer with the template set.
        messages: messages with placeholders for images and videos.
        add_generation_prompt: whether to open the assistant's turn.

    Raises:
        ValueError: the template fails for these messages.
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
    text.encode("utf-8")  # an escape in a template can produce half of a surrogate pair
    return str(text)


def one_line(error: BaseException) -> str:
    """Format an error in one line of at most 200 characters, with its type if it is unusual."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    text = text if isinstance(error, ValueError | OSError) and text else f"{name}: {text}"
    return text.removesuffix(": ")[:200]
