"""Side files of a checkpoint (all except weights and config), for `fuzz.py`.

One file at a time is damaged; the rest of the folder is a checkpoint with a tokenizer of a few
tokens, small enough to be opened thousands of times.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>")
QUESTIONS: tuple[Any, ...] = (
    [{"role": "user", "content": "What is it?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [{"type": "text", "text": "c"}]},
    ],
)


@cache
def side_files() -> dict[str, bytes]:
    """Valid contents of every side file, by name; some in a second layout."""
    from vlpress.model.loading import resolve_model

    tiny = resolve_model("tiny")
    ids = {token: len(symbols()) + index for index, token in enumerate(SPECIAL)}
    begin, end = ids["<|endoftext|>"], ids["<|im_end|>"]
    config = json.loads((tiny / "config.json").read_bytes())
    config |= {"image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"]}
    config |= {"bos_token_id": begin, "eos_token_id": end}
    generation = {"bos_token_id": begin, "eos_token_id": [end, begin], "do_sample": False}
    image = json.loads((tiny / "preprocessor_config.json").read_bytes())
    edges = {"shortest_edge": image.pop("min_pixels"), "longest_edge": image.pop("max_pixels")}
    image |= {"size": edges, "do_resize": True, "resample": 3, "rescale_factor": 1 / 255}
    template = (tiny / "chat_template.jinja").read_bytes()
    settings = tokenizer_settings(ids)
    named = {key: settings[key] for key in ("eos_token", "pad_token")}
    files = {
        "config.json": config,
        "generation_config.json": generation,
        "preprocessor_config.json": image,
        "processor_config.json": {"image_processor": image, "processor_class": "Qwen2VLProcessor"},
        "chat_template.json": {"chat_template": template.decode()},
        "tokenizer.json": tokenizer(ids),
        "tokenizer_config.json": settings | {"chat_template": template.decode()},
        "special_tokens_map.json": named | {"additional_special_tokens": list(SPECIAL[1:])},
        "added_tokens.json": ids,
        "vocab.json": {symbol: index for index, symbol in enumerate(symbols())},
    }
    # Without the decoder entry, transformers reads the tokens from special_tokens_map.json.
    legacy = {key: value for key, value in settings.items() if key != "added_tokens_decoder"}
    files["legacy/tokenizer_config.json"] = legacy
    texts = {name: json.dumps(content).encode() for name, content in files.items()}
    return texts | {"chat_template.jinja": template, "merges.txt": b"#version: 0.2\na b\nab c\n"}


def symbols() -> list[str]:
    """Tokens of the vocabulary: letters, and the results of two merges."""
    return [*"abcdefghijklmnopqrstuvwxyz", "Ġ", "Ċ", "ab", "abc"]


def tokenizer(ids: dict[str, int]) -> dict[str, Any]:
    """A byte-level tokenizer in the layout of tokenizer.json."""
    added = [
        {"id": index, "content": token, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for token, index in ids.items()
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    model = {"type": "BPE", "vocab": {symbol: index for index, symbol in enumerate(symbols())}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": level | {"use_regex": True},
        "post_processor": level | {"use_regex": False},
        "decoder": level | {"use_regex": False},
        "model": model | {"merges": [["a", "b"], ["ab", "c"]], "dropout": None},
    }


def tokenizer_settings(ids: dict[str, int]) -> dict[str, Any]:
    """The fields of tokenizer_config.json."""
    flags: dict[str, Any] = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(index): {"content": token, "special": True} | flags for token, index in ids.items()
        },
        "additional_special_tokens": list(SPECIAL[1:]),
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 4096,
        "errors": "replace",
    }


def seed(name: str) -> Callable[[], bytes]:
    """Valid content of a file."""
    return lambda: side_files()[name]


def reader(*others: str) -> Callable[[Path], object]:
    """Make a reader that opens the processor of a folder with a damaged file.

    Args:
        others: keys in `side_files` of the other files in the folder, except config.json.
    """

    def read(path: Path) -> object:
        from vlpress.model.processing.processor import Processor

        for name in ("config.json", *others):
            target = path.parent / Path(name).name
            if not target.is_file():
                target.write_bytes(side_files()[name])
        processor = Processor.from_folder(path.parent)
        return [processor.encode(question).input_ids for question in QUESTIONS]

    return read


OWN_TEMPLATE = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
TEMPLATE = (*OWN_TEMPLATE, "chat_template.jinja")
WITHOUT_JSON = (*OWN_TEMPLATE[1:], "vocab.json", "merges.txt", "chat_template.jinja")
SIDE_FILES: dict[str, tuple[str, ...]] = {
    "chat_template.jinja": OWN_TEMPLATE,
    "chat_template.json": OWN_TEMPLATE,
    "tokenizer_config.json": ("tokenizer.json", "preprocessor_config.json"),
    "tokenizer.json": TEMPLATE[1:],
    "special_tokens_map.json": ("legacy/tokenizer_config.json", TEMPLATE[0], *TEMPLATE[2:]),
    "added_tokens.json": ("vocab.json", "merges.txt", "chat_template.jinja", OWN_TEMPLATE[2]),
    "vocab.json": tuple(name for name in WITHOUT_JSON if name != "vocab.json"),
    "merges.txt": tuple(name for name in WITHOUT_JSON if name != "merges.txt"),
    "preprocessor_config.json": ("tokenizer.json", "tokenizer_config.json"),
    "processor_config.json": OWN_TEMPLATE,
    "generation_config.json": TEMPLATE,
}
"""Files to damage, with the other files of their folder."""
