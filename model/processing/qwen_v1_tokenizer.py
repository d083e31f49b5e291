"""Tokenizer and chat template of Qwen-VL of 2023.

Its checkpoints hold `qwen.tiktoken` and Python code, which is not run: the tokenizer is built from
the file, with the special tokens that the code defines. The original writes the bytes of an image's
path, one id for each, and fills up with `<imgpad>`; the model reads the path from the ids. Here the
tokens of an image are `<imgpad>` alone. No embedding of them is used, because features replace all.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from ...common.imports import without_collections
from .rank_file import BYTES, merges_of, read_ranks

RANK_FILE = "qwen.tiktoken"
IMAGE_PAD = "<imgpad>"
SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *(f"<|extra_{number}|>" for number in range(205)),
    *("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", IMAGE_PAD),
)
"""Special tokens; their ids follow the last rank in this order."""
PATTERN = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+|\s+(?!\S)|\s+",
    ]
)
"""Words of a text, within which bytes are merged."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% set ns = namespace(pictures=0) %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{% set ns.pictures = ns.pictures + 1 %}"
    "{{ 'Picture ' + ns.pictures | string + ': <img><imgpad></img>\\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}{{ raise_exception('Qwen-VL of 2023 reads images and text only') }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML with numbered pictures; used if a checkpoint has no template, as those published."""


def build_tokenizer(folder: Path) -> Any:
    """Build the tokenizer of a checkpoint folder, for transformers.

    Raises:
        FileNotFoundError: the folder has no `qwen.tiktoken`.
        ValueError: the file is malformed.
    """
    path = folder / RANK_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: no {RANK_FILE}; give a folder with a complete checkpoint"
        )
    stat = path.stat()
    with without_collections():
        import transformers

    tokenizer_class: Any = transformers.PreTrainedTokenizerFast
    return tokenizer_class(
        tokenizer_object=_backend(path, (stat.st_mtime_ns, stat.st_size)),
        eos_token=SPECIAL_TOKENS[0],
        clean_up_tokenization_spaces=False,
    )


@lru_cache(maxsize=2)
def _backend(path: Path, version: tuple[int, int]) -> Any:
    """Build the tokenizer once for each version of a file; the merges take seconds."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    tokens, letters = read_ranks(path), byte_letters()

    def written(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    vocabulary = {written(token): rank for rank, token in enumerate(tokens)}
    merges = [(written(left), written(right)) for left, right in merges_of(tokens)]
    # A word that is a token is not merged at all, as in tiktoken.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = Sequence(
        [
            Split(Regex(PATTERN), behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def byte_letters() -> tuple[str, ...]:
    """Return the letter that stands for each byte in byte-level vocabularies.

    Printable bytes of Latin-1 stand for themselves, the others for the letters from 256 on.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, BYTES)}
    others = [byte for byte in range(BYTES) if byte not in printable]
    return tuple(
        chr(byte if byte in printable else BYTES + others.index(byte)) for byte in range(BYTES)
    )
