from pathlib import Path

import pytest
import tiny_tokenizer
from tokenizers import Tokenizer

from vlpress.model.loading import resolve_model


@pytest.mark.slow
def test_the_script_reproduces_the_shipped_tokenizer(tmp_path: Path) -> None:
    tiny_tokenizer.write(tmp_path)
    shipped = resolve_model("tiny")
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (shipped / file.name).read_bytes(), file.name


@pytest.mark.slow
def test_the_script_reproduces_the_tokenizer_that_thinks(tmp_path: Path) -> None:
    tiny_tokenizer.write(tmp_path, thinking=True)
    shipped = resolve_model("tiny3.5")
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (shipped / file.name).read_bytes(), file.name


def test_tags_of_a_reasoning_change_no_other_token() -> None:
    plain = Tokenizer.from_file(str(resolve_model("tiny") / "tokenizer.json"))
    thinks = Tokenizer.from_file(str(resolve_model("tiny") / "tokenizer.json"))
    tiny_tokenizer.add_thinking(thinks)
    assert thinks.encode("<think>").ids == [1280] and thinks.encode("</think>").ids == [1281]
    assert thinks.get_vocab_size() == 1282 <= tiny_tokenizer.THINKING_VOCAB_SIZE
    for text in ("What colour is the star?", "图中写的是什么？", "<|im_start|>user\n"):
        assert thinks.encode(text).ids == plain.encode(text).ids
    assert thinks.decode([1280, 1281]) == "<think></think>"  # not dropped as special tokens


def test_capitals_and_digits_are_separate_tokens() -> None:
    tokenizer = Tokenizer.from_file(str(resolve_model("tiny") / "tokenizer.json"))
    assert tokenizer.encode("KQ47").tokens == ["K", "Q", "4", "7"]
    assert len(tokenizer.encode("A. red\n").ids) == 4
    assert tokenizer.get_vocab_size() == tiny_tokenizer.VOCAB_SIZE


def test_any_text_survives_the_round_trip() -> None:
    tokenizer = Tokenizer.from_file(str(resolve_model("tiny") / "tokenizer.json"))
    for text in ("What colour is the star?", "图中写的是什么？", "ÄÖ €uro 🙂\t x^{2}+3\n\n ok"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
