from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import CHAT_TEMPLATE
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from vlpress.quant.vocabulary.texts import (
    Length,
    check_texts,
    count_tokens,
    digest_texts,
    read_pieces,
    template_pieces,
    tokenize,
)


@pytest.fixture(scope="module")
def tokenizer(trained: Tokenizer) -> PreTrainedTokenizerFast:
    make: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = make(tokenizer_object=trained)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def test_plain_text_is_cut_at_ends_of_lines(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    text = "one two\n\n  three\nfour\n\n\nfive"
    (tmp_path / "a.txt").write_text(text)
    pieces = list(read_pieces(str(tmp_path / "a.txt"), tokenizer))
    assert pieces == ["one two\n\n  three\n", "four\n\n\n", "five"]
    whole = count_tokens(tokenize([text], tokenizer))
    assert count_tokens(tokenize(pieces, tokenizer)) == whole


def test_samples_are_rendered_with_their_answers_and_without_images(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "no.png").write_bytes(b"never opened")
    records = [
        {"image": "no.png", "question": "What?", "answer": "A cat."},
        {"text": "Some text."},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    first, second = read_pieces(str(path), tokenizer)
    assert first == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What?<|im_end|>\n"
        "<|im_start|>assistant\nA cat.<|im_end|>"
    )
    assert "Some text." in second


def test_a_broken_record_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n{"question": "no answer"}')
    with pytest.raises(ValueError, match=r"a.jsonl:2: .*answer"):
        list(read_pieces(str(path), tokenizer))


def test_the_drawings_have_texts(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlpress.quant.vocabulary.texts.DRAWINGS", 3)
    pieces = list(read_pieces("synthetic", tokenizer))
    assert len(pieces) == 3
    assert all(piece.startswith("<|im_start|>user\n<|vision_start|>") for piece in pieces)


def test_the_texts_of_a_template_are_its_literals_and_what_is_outside_tags() -> None:
    template = "{# no #}Hello {%- if x == 'y' -%}{{ '<s>\\n' + \"it's\" }}{% endif %}"
    assert template_pieces(template) == ["Hello ", "y", "<s>\n", "it's"]
    assert "<|vision_start|><|image_pad|><|vision_end|>" in "".join(template_pieces(CHAT_TEMPLATE))


def test_unknown_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'a.pdf' is of an unknown type; allowed: files with"):
        check_texts(["a.pdf"])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check_texts([str(tmp_path / "a.txt")])
    check_texts(["synthetic"])


def test_the_digest_follows_the_contents(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = digest_texts([str(path), "synthetic"])
    assert first == digest_texts([str(path), "synthetic"]) != digest_texts([str(path)])
    path.write_text("two")
    assert digest_texts([str(path), "synthetic"]) != first


def test_lengths_have_shares() -> None:
    assert Length(200, 10, 230).to_dict() == {
        "tokens": 200,
        "tokens_after": 230,
        "removed_share": 0.05,
        "growth": pytest.approx(0.15),
    }
    assert Length(0, 0, 0).to_dict()["growth"] is None
