"""Loading of a checkpoint's tokenizer, with checks against the model's config.

The tokenizer comes from the checkpoint through transformers' AutoTokenizer, or from files of the
family's own form (`ChatFormat.build_tokenizer`); nothing else of that library is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.imports import without_collections
from ..config import ModelConfig, read_checkpoint_json, refuse_pointer
from ..families import family_of
from .chat_format import ChatFormat
from .chat_templates import check_chat_template, one_line, read_chat_template

FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt"),
)


def load_tokenizer(folder: Path, config: ModelConfig) -> Any:
    """Load the tokenizer with the chat template of the checkpoint's processor.

    Args:
        folder: the checkpoint folder.
        config: the model's config; its embedding must have a row for every id.

    Raises:
        FileNotFoundError: the folder has no tokenizer.
        ValueError: a file is unusable, or the tokenizer belongs to another model.
    """
    chat = family_of(config).chat
    stored = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    if not stored and chat.build_tokenizer is None:
        raise FileNotFoundError(
            f"{folder}: no tokenizer.json and no vocab.json; "
            "give a folder with a complete checkpoint"
        )
    template = read_chat_template(folder, chat.default_template)
    try:
        tokenizer, ids, pieces = _open(folder, chat)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # of any type; a Rust panic is not a subclass of Exception
        if chat.build_tokenizer is not None and isinstance(error, FileNotFoundError | ValueError):
            raise  # they name the file that is not the one of other families
        raise _refusal(folder, error) from None
    _check_ids(folder, ids, pieces, config, chat)
    tokenizer.chat_template = template.text
    check_chat_template(tokenizer, template.file, config.image_token_id)
    return tokenizer


def _open(folder: Path, chat: ChatFormat) -> tuple[Any, dict[str, int], dict[str, list[int]]]:
    """Return the tokenizer, all its ids, and its encoding of the required tokens."""
    tokenizer = _load(folder) if chat.build_tokenizer is None else chat.build_tokenizer(folder)
    pieces = {token: tokenizer.encode(token, add_special_tokens=False) for token in chat.required}
    return tokenizer, tokenizer.get_vocab(), pieces


def _load(folder: Path) -> Any:
    with without_collections():
        from transformers import AutoTokenizer

    # Without trust_remote_code=False, a folder with custom code opens a prompt on the terminal.
    return AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )


def _refusal(folder: Path, error: BaseException) -> ValueError:
    """Name the faulty file if it is not JSON or a Git LFS pointer, otherwise the folder."""
    for path in (folder / name for name in FILES if (folder / name).is_file()):
        try:
            read_checkpoint_json(path) if path.suffix == ".json" else refuse_pointer(path)
        except (ValueError, OSError) as broken:
            return ValueError(str(broken))
    if type(error).__name__.startswith("StrictDataclass"):  # AutoTokenizer reads config.json too
        return ValueError(
            f"{folder / 'config.json'}: transformers cannot read it ({one_line(error)}); "
            "take the file from the original checkpoint"
        )
    return ValueError(
        f"{folder}: the tokenizer cannot be loaded ({one_line(error)}); take {FILES[0]}, "
        f"{FILES[1]} and the other files of the tokenizer from the original checkpoint"
    )


def _check_ids(
    folder: Path,
    ids: Mapping[str, int],
    pieces: Mapping[str, Sequence[int]],
    config: ModelConfig,
    chat: ChatFormat,
) -> None:
    """Compare the tokenizer with the embedding and with the token ids in config.json."""
    size, last = config.text.vocab_size, max(ids, key=ids.__getitem__, default="")
    if last and ids[last] >= size:
        raise ValueError(
            f"{folder}: the tokenizer has ids up to {ids[last]} ({_short(last)}), the embedding "
            f"has {size} rows (vocab_size in config.json); take the tokenizer that the weights "
            "were saved with, or resize the embedding"
        )
    missing = [
        token for token in chat.required if token not in ids or list(pieces[token]) != [ids[token]]
    ]
    if missing:
        raise ValueError(
            f"{folder}: the tokenizer does not have {', '.join(missing)} as one token; "
            "take its files from the original vision-language checkpoint"
        )
    for field, token in (("image_token_id", chat.image), ("video_token_id", chat.video)):
        token_id = getattr(config, field)
        if token is not None and token_id != ids[token]:
            raise ValueError(
                f"{folder}: {field} in config.json is {token_id}, the tokenizer has {ids[token]} "
                f"for {token}; take both from the same checkpoint"
            )


def read_stop_ids(folder: Path, vocab_size: int) -> tuple[int, ...]:
    """Read the stop tokens in `eos_token_id` of generation_config.json; none without the file.

    Args:
        folder: the checkpoint folder.
        vocab_size: rows of the embedding.

    Raises:
        ValueError: the file is not a JSON object, or the field contains other values than token
            ids.
    """
    path = folder / "generation_config.json"
    value = read_checkpoint_json(path).get("eos_token_id") if path.is_file() else None
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    for token_id in ids:
        is_whole = type(token_id) is int or (type(token_id) is float and token_id.is_integer())
        if not is_whole or not 0 <= token_id < vocab_size:
            raise ValueError(
                f"{path}: eos_token_id holds {_short(token_id)}; allowed: token ids from 0 to "
                f"{vocab_size - 1}, one or a list; take the file from the original checkpoint"
            )
    return tuple(int(token_id) for token_id in ids)


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else shown[:37] + "..."
