"""Pruned tokenizers, read by the tokenizers package and by transformers."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from trained_tokenizers import ADDED, generated_text
from transformers import AutoTokenizer

from vlpress.quant.vocabulary.byte_pairs import BytePairs
from vlpress.quant.vocabulary.kept_tokens import KeptTokens
from vlpress.quant.vocabulary.selection import required_tokens, select_tokens
from vlpress.quant.vocabulary.texts import count_tokens
from vlpress.quant.vocabulary.tokenizer_files import (
    file_writers,
    pruned_config,
    pruned_tokenizer,
)

NAMES = (
    *("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"),
)


@pytest.fixture(scope="module")
def kept(byte_pairs: BytePairs, trained: Tokenizer) -> KeptTokens:
    """Half of the tokens, for a text with the same words as the tokenizer was trained on."""
    counts = count_tokens([trained.encode(generated_text(40, seed=2)).ids])
    required = required_tokens(byte_pairs)
    chosen = select_tokens(byte_pairs, required, counts, size=640, multiple=64)
    return KeptTokens(chosen.kept, rows=len(byte_pairs.ids) + 7)


@pytest.fixture(scope="module")
def pruned(byte_pairs: BytePairs, kept: KeptTokens) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(pruned_tokenizer(byte_pairs, kept, "tokenizer.json")))


@pytest.fixture(scope="module")
def pruned_folder(
    tokenizer_folder: Path,
    byte_pairs: BytePairs,
    kept: KeptTokens,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("pruned")
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    for name, write in file_writers(tokenizer_folder, NAMES, byte_pairs, kept).items():
        write(tokenizer_folder / name, folder / name)
    return folder


def test_a_text_of_kept_tokens_has_the_same_tokens(
    trained: Tokenizer, pruned: Tokenizer, kept: KeptTokens
) -> None:
    same, longer = 0, 0
    for line in generated_text(300, seed=3).splitlines(keepends=True):
        before = trained.encode(line)
        after = pruned.encode(line)
        assert pruned.decode(after.ids) == trained.decode(before.ids) == line
        expected = kept.translate(before.ids)
        if expected is not None:
            same += 1
            assert after.ids == expected
            assert after.tokens == before.tokens
        else:
            longer += 1
            assert len(after.ids) > len(before.ids)
    assert same > 50
    assert longer > 50


TEXTS = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from([*ADDED, "naïve", "é", "e\u0301", "的是", " 🙂🙂", "привет", "\n\n \t"]),
    ),
    max_size=8,
).map("".join)


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
@example(text="<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>카<think>\n</think>")
@example(text="\u0000\ud7ff\ue000\U0010ffff\ufeff")
def test_any_text_survives(text: str, pruned: Tokenizer) -> None:
    ids = pruned.encode(text).ids
    # The tokenizer normalizes to NFC, before and after pruning.
    assert pruned.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


def test_ids_are_dense_and_in_the_order_of_the_original(
    trained: Tokenizer, pruned: Tokenizer, kept: KeptTokens
) -> None:
    before, after = trained.get_vocab(), pruned.get_vocab()
    assert after == {token: kept.new_ids[before[token]] for token in after}
    assert sorted(after.values()) == list(range(640))


def test_merges_stay_in_order_and_none_lacks_a_part(
    byte_pairs: BytePairs, kept: KeptTokens
) -> None:
    data = pruned_tokenizer(byte_pairs, kept, "tokenizer.json")
    merges = [tuple(merge) for merge in data["model"]["merges"]]
    ranks = [byte_pairs.merges.index(merge) for merge in merges]
    assert ranks == sorted(ranks)
    vocab = data["model"]["vocab"]
    # Every token is a byte or the result of a kept merge.
    made = {left + right for left, right in merges}
    assert {token for token in vocab if len(token) > 1} == made


def test_all_files_agree_as_transformers_reads_them(pruned_folder: Path, pruned: Tokenizer) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(pruned_folder))
    assert tokenizer.get_vocab() == pruned.get_vocab()
    assert tokenizer.eos_token_id == pruned.token_to_id("<|im_end|>")
    read = {
        name: json.loads((pruned_folder / name).read_text())
        for name in NAMES
        if "." in name and name.endswith(".json")
    }
    ids = pruned.get_vocab()
    assert read["vocab.json"] == read["tokenizer.json"]["model"]["vocab"]
    assert read["added_tokens.json"] == {token: ids[token] for token in ADDED}
    decoder = read["tokenizer_config.json"]["added_tokens_decoder"]
    assert {entry["content"]: int(key) for key, entry in decoder.items()} == {
        token: ids[token] for token in ADDED
    }
    generation = read["generation_config.json"]
    assert generation["eos_token_id"] == [ids["<|im_end|>"], ids["<|endoftext|>"]]
    assert generation["pad_token_id"] == ids["<|endoftext|>"]
    assert generation["bos_token_id"] is None
    lines = (pruned_folder / "merges.txt").read_text().splitlines()
    assert lines[0] == "#version: 0.2"
    assert [tuple(line.split(" ")) for line in lines[1:]] == [
        tuple(merge) for merge in read["tokenizer.json"]["model"]["merges"]
    ]


def test_a_slow_tokenizer_of_vocab_and_merges_gives_the_same(
    pruned_folder: Path, pruned: Tokenizer
) -> None:
    from transformers import Qwen2Tokenizer

    text = generated_text(5, seed=9)
    built = Qwen2Tokenizer.from_pretrained(str(pruned_folder))
    assert built.encode(text, add_special_tokens=False) == pruned.encode(text).ids


def test_special_tokens_map_is_left_as_it_is(
    tokenizer_folder: Path, byte_pairs: BytePairs, kept: KeptTokens
) -> None:
    assert "special_tokens_map.json" not in file_writers(tokenizer_folder, NAMES, byte_pairs, kept)


def changed(folder: Path, tmp_path: Path, name: str, content: str) -> Path:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text(content)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", '{"a": 5000}', "'a' has the id 5000, but tokenizer.json has"),
        ("merges.txt", "a b\n", "its 1 merges are not the"),
        ("qwen.tiktoken", "IQ== 0", "qwen.tiktoken: prune_vocab does not rewrite this file"),
        ("generation_config.json", '{"bos_token_id": 1209}', "bos_token_id has the id 1209"),
        ("generation_config.json", '{"sequence_bias": {"3": 1}}', "prune_vocab does not rewrite"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tokenizer_folder: Path,
    byte_pairs: BytePairs,
    kept: KeptTokens,
    tmp_path: Path,
    name: str,
    content: str,
    message: str,
) -> None:
    folder = changed(tokenizer_folder, tmp_path, name, content)
    names = {*NAMES, name}
    with pytest.raises(ValueError, match=message):
        file_writers(folder, sorted(names), byte_pairs, kept)


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}},
}


def small(post_processor: Any, **more: Any) -> BytePairs:
    model: dict[str, Any] = {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
    added = [{"id": 3, "content": "<s>", "special": True}]
    data = {"model": model, "added_tokens": added, "post_processor": post_processor, **more}
    return BytePairs(data, model["vocab"], (("a", "b"),), {"<s>": 3})


def test_post_processors_and_padding_get_new_ids() -> None:
    kept = KeptTokens((0, 1, 3), rows=4)
    sequence = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, TEMPLATE]}
    data = pruned_tokenizer(small(sequence, padding={"pad_id": 3}), kept, "tokenizer.json")
    assert data["model"] == {"vocab": {"a": 0, "b": 1}, "merges": []}
    assert data["added_tokens"][0]["id"] == 2
    assert data["padding"] == {"pad_id": 2}
    assert data["post_processor"]["processors"][1]["special_tokens"]["<s>"]["ids"] == [2]
    with pytest.raises(ValueError, match="post_processor is 'BertProcessing'; allowed"):
        pruned_tokenizer(small({"type": "BertProcessing"}), kept, "tokenizer.json")


def test_ids_of_the_config_are_mapped_in_nested_objects_too() -> None:
    kept = KeptTokens((0, 1, 3), rows=4)
    raw = {
        "image_token_id": 3,
        "pad_token_id": None,
        "vocab_size": 4,
        "text_config": {"eos_token_id": [1, 3], "bos_token_id": -1, "vocab_size": 4},
    }
    assert pruned_config(raw, kept, {"image_token_id": 3, "video_token_id": 1}) == {
        "image_token_id": 2,
        "pad_token_id": None,
        "vocab_size": 3,
        "text_config": {"eos_token_id": [1, 2], "bos_token_id": -1, "vocab_size": 3},
        "video_token_id": 1,
    }
    assert pruned_config({}, kept, {}) == {"vocab_size": 3}
    with pytest.raises(ValueError, match=r"config.json: eos_token_id has the id 2, which is no"):
        pruned_config({"eos_token_id": 2}, kept, {})


def test_suppressed_tokens_that_are_removed_need_no_entry(
    tokenizer_folder: Path, byte_pairs: BytePairs, kept: KeptTokens, tmp_path: Path
) -> None:
    gone = next(i for i in range(len(byte_pairs.ids)) if i not in kept.new_ids)
    stays = kept.ids[-1]
    content = {"suppress_tokens": [gone, stays], "bad_words_ids": [[stays, gone], [stays]]}
    name = "generation_config.json"
    folder = changed(tokenizer_folder, tmp_path, name, json.dumps(content))
    file_writers(folder, [name], byte_pairs, kept)[name](folder / name, folder / name)
    new = kept.new_ids[stays]
    assert json.loads((folder / name).read_text()) == {
        "suppress_tokens": [new],
        "bad_words_ids": [[new]],
    }
