import codecs

import pytest

from vlpress.common.text_files import decode_utf8, read_object


def test_the_byte_order_mark_is_removed() -> None:
    assert decode_utf8(codecs.BOM_UTF8 + "你好 é".encode(), "a.txt") == "你好 é"
    assert decode_utf8(b"", "a.txt") == ""


@pytest.mark.parametrize(
    "raw",
    [
        "你好".encode("utf-16"),
        "plain text".encode("utf-16-le"),
        "plain text".encode("utf-16-be"),
        "plain text".encode("utf-32"),
        "fine\n你好".encode("gbk"),
        "fine\ncaf\u00e9".encode("latin-1"),
    ],
)
def test_other_encodings_are_refused_with_the_file(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"a\.txt.* UTF-8") as caught:
        decode_utf8(raw, "a.txt")
    assert "\n" not in str(caught.value)


def test_the_line_of_a_bad_byte_is_named() -> None:
    with pytest.raises(ValueError, match=r"^a\.txt:2 "):
        decode_utf8(b"fine\n\xff\nfine", "a.txt")


def test_numbers_can_be_parsed_by_another_function() -> None:
    assert read_object('{"a": 1.50, "b": 2}') == {"a": 1.5, "b": 2}
    assert read_object('{"a": 1.50}', parse_float=lambda text: float(text) * 2) == {"a": 3.0}


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("{", "not JSON"),
        ("[1]", "list"),
        ('"text"', "str"),
        ('{"a": 1, "a": 2}', "'a'"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ('{"a": ' + "[" * 200_000, "not JSON"),
    ],
)
def test_other_lines_are_refused(line: str, names: str) -> None:
    with pytest.raises(ValueError, match=names) as caught:
        read_object(line)
    assert "\n" not in str(caught.value)
