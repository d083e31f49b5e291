from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from trained_tokenizers import ADDED

from vlpress.quant.vocabulary.byte_pairs import BytePairs, byte_letters


def toy(merges: list[Any], vocab: str) -> dict[str, Any]:
    """A tokenizer.json of the tokens of a text with blanks between them."""
    tokens = {token: index for index, token in enumerate(vocab.split())}
    level = {"type": "ByteLevel"}
    model = {"type": "BPE", "vocab": tokens, "merges": merges}
    return {"model": model, "pre_tokenizer": level, "decoder": level, "added_tokens": []}


def opened(tmp_path: Path, data: dict[str, Any]) -> BytePairs:
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    return BytePairs.from_folder(tmp_path)


def test_the_letters_of_bytes_are_those_of_the_tokenizers_package() -> None:
    assert byte_letters() == set(pre_tokenizers.ByteLevel.alphabet())


def test_closure_adds_the_parts_of_merges_recursively(tmp_path: Path) -> None:
    tokens = opened(tmp_path, toy([["a", "b"], "ab c", ["d", "e"]], "a b c d e ab abc de"))
    assert tokens.closure([7]) == {3, 4, 7}
    assert tokens.closure([6]) == {0, 1, 2, 5, 6}
    assert tokens.closure([]) == set()


def test_closure_has_the_parts_of_all_merges_that_make_a_token(tmp_path: Path) -> None:
    merges = [["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"]]
    tokens = opened(tmp_path, toy(merges, "a b c ab bc abc"))
    assert tokens.closure([5]) == {0, 1, 2, 3, 4, 5}


def test_a_merge_is_kept_with_its_parts_and_its_result(tmp_path: Path) -> None:
    tokens = opened(tmp_path, toy([["a", "b"], ["ab", "c"]], "a b c ab abc"))
    assert tokens.kept_merges({0, 1, 2, 3}) == [0]
    assert tokens.kept_merges({0, 1, 2, 3, 4}) == [0, 1]
    assert tokens.kept_merges({0, 1, 2, 4}) == []


def test_bytes_digits_and_added_tokens_of_a_trained_tokenizer(
    byte_pairs: BytePairs, trained: Tokenizer
) -> None:
    names = {index: token for token, index in byte_pairs.ids.items()}
    assert {names[index] for index in byte_pairs.bytes} == byte_letters()
    assert {names[index] for index in byte_pairs.digits} == set("0123456789")
    assert set(byte_pairs.added) == set(ADDED)
    assert byte_pairs.ids == dict(sorted(trained.get_vocab().items(), key=lambda item: item[1]))
    # Deep merges: some token has a part that has a part that has a part.
    assert max(len(byte_pairs.closure([token])) for token in byte_pairs.ids.values()) > 12


def change_model(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["model"].update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_model("type", "Unigram"), r"model.type is 'Unigram'; allowed: 'BPE'"),
        (change_model("byte_fallback", True), r"model.byte_fallback is True; allowed: null"),
        (change_model("dropout", 0.1), r"model.dropout is 0.1; allowed: null"),
        (change_model("merges", [["a", "c"]]), r"needs the token 'ac', which is missing"),
        (change_model("merges", ["a b c"]), r"'a b c' is not a pair of tokens"),
        (change_model("vocab", {"a": 0, "b": 0}), r"2 tokens have 1 different ids"),
        (lambda data: data.update(decoder=None), r"decoder is not byte-level"),
        (lambda data: data.update(pre_tokenizer={"type": "Metaspace"}), r"pre_tokenizer is not"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    data = toy([], "a b c")
    change(data)
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, data)


def test_a_folder_without_tokenizer_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
        BytePairs.from_folder(tmp_path)
