"""A byte-level BPE tokenizer trained on a generated text, in all files of published ones."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny_models import (
    ARCHITECTURES,
    CHAT_TEMPLATE,
    SPECIAL_TOKENS,
    TINY,
    make_random_model,
    raw_config,
    write_checkpoint_folder,
)
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from vlpress.model.config import ModelConfig

SPLIT = (
    r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SYLLABLES = (
    "ka lo mi ter ong der sche über naïve ção 的是 一个 猫狗 привет мир 안녕 שלום 🙂 é".split()
)
ADDED = [*SPECIAL_TOKENS, "<think>", "</think>"]
"""The last two are ordinary added tokens, which are not skipped when a text is decoded."""


def generated_text(lines: int, seed: int, vocabulary: int = 400) -> str:
    """Write lines of words made of syllables; few of the words are frequent."""
    rng = random.Random(seed)
    of_words = random.Random(0)
    words = [
        "".join(of_words.choices(SYLLABLES, k=of_words.randint(1, 4))) for _ in range(vocabulary)
    ]
    weights = [1 / (rank + 1) for rank in range(vocabulary)]
    written = [
        " ".join(rng.choices(words, weights, k=9)) + f", {rng.randint(0, 2000)}.\n"
        for _ in range(lines)
    ]
    return "".join(written)


def trained_tokenizer(size: int = 1200) -> Tokenizer:
    """Train a tokenizer of at most `size` tokens without the added ones, which come after them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(generated_text(1500, seed=1).splitlines(keepends=True), trainer)
    tokenizer.add_tokens(
        [AddedToken(token, special=token in SPECIAL_TOKENS, normalized=False) for token in ADDED]
    )
    return tokenizer


def write_tokenizer_files(folder: Path, tokenizer: Tokenizer) -> dict[str, int]:
    """Write a tokenizer in all files that published checkpoints have; returns its ids."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    ids: dict[str, int] = tokenizer.get_vocab()
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8", newline="\n")
    decoder = {
        str(ids[token]): {"content": token, "special": token in SPECIAL_TOKENS} for token in ADDED
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "added_tokens_decoder": decoder,
        "chat_template": CHAT_TEMPLATE,
    }
    eos = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    generation = {"eos_token_id": eos, "pad_token_id": eos[1], "bos_token_id": None}
    contents = {
        "vocab.json": model["vocab"],
        "added_tokens.json": {token: ids[token] for token in ADDED},
        "tokenizer_config.json": settings,
        "special_tokens_map.json": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        "generation_config.json": generation,
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return ids


ROWS = 1280
"""Rows of the embedding of `write_source`, some of them beyond the tokenizer."""
ID_FIELDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "bos_token_id": "<|endoftext|>",
    "eos_token_id": "<|im_end|>",
}


def write_source(
    folder: Path, tokenizer: Tokenizer, family: str, *, tied: bool, shards: int = 1, **model: Any
) -> Path:
    """Write a random model with a trained tokenizer."""
    ids = tokenizer.get_vocab()
    size = replace(TINY, token_ids={field: ids[token] for field, token in ID_FIELDS.items()})
    raw = raw_config(family, size, tied=tied, dtype="float32", text={"vocab_size": ROWS})
    config = ModelConfig.from_dict({"architectures": [ARCHITECTURES[family]], **raw})
    write_checkpoint_folder(
        folder, make_random_model(config=config, seed=3), shards=shards, **model
    )
    write_tokenizer_files(folder, tokenizer)
    return folder
