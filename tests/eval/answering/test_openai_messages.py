from __future__ import annotations

import base64
import io
import struct
from pathlib import Path
from typing import Any
from zlib import compress, crc32

import pytest
from chat_server import completion, usage
from eval_files import package_files
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops

from vlpress.eval.answering.openai_messages import chat_messages, data_url, parse_reply
from vlpress.eval.answering.runner import Completion
from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.files.image_store import (
    AS_DISPLAYED,
    VLMEVALKIT,
    Decoding,
    StoredImage,
)
from vlpress.eval.tasks.task import Item
from vlpress.model.processing.images import ORIENTATION

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


def encoded(mode: str, form: str, **options: Any) -> bytes:
    """An image of two halves that every flip or rotation changes."""
    image = Image.new("RGB", (6, 4), (200, 30, 10))
    image.paste((10, 60, 220), (0, 0, 2, 4))
    image.putpixel((5, 0), (0, 255, 0))
    buffer = io.BytesIO()
    converted = image.convert(mode)
    if mode == "RGBA":
        converted.putalpha(Image.linear_gradient("L").resize(image.size))
    converted.save(buffer, form, **options)
    return buffer.getvalue()


def sent(data: bytes, decoding: Decoding = VLMEVALKIT) -> tuple[str, bytes]:
    """Media type and bytes of a data URL."""
    head, _, body = data_url(StoredImage.of(data, decoding)).partition(",")
    assert head.startswith("data:") and head.endswith(";base64")
    return head[5:-7], base64.b64decode(body, validate=True)


@pytest.mark.parametrize(
    ("mode", "form", "media"),
    [
        ("RGB", "PNG", "image/png"),
        ("L", "PNG", "image/png"),
        ("P", "PNG", "image/png"),
        ("RGB", "JPEG", "image/jpeg"),
        ("L", "JPEG", "image/jpeg"),
        ("RGB", "WEBP", "image/webp"),
    ],
)
def test_plain_images_are_sent_as_their_own_bytes(mode: str, form: str, media: str) -> None:
    data = encoded(mode, form)
    assert sent(data) == (media, data)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return encoded("RGB", "JPEG", exif=exif)


def deep_colours() -> bytes:
    """A PNG of one pixel with 16 bits per channel, which Pillow reads and does not write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc32(name + body))

    head = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">HHH", 0xFFFF, 0x8000, 0x00FF)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", compress(row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def moving() -> bytes:
    frames = [Image.new("RGB", (6, 4), color) for color in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encoded("RGB", "BMP"), id="bmp"),
        pytest.param(encoded("P", "GIF"), id="gif"),
        pytest.param(encoded("RGBA", "PNG"), id="alpha"),
        pytest.param(encoded("P", "PNG", transparency=0), id="transparent colour"),
        pytest.param(encoded("CMYK", "JPEG"), id="cmyk"),
        pytest.param(encoded("I;16", "PNG"), id="16 bits"),
        pytest.param(deep_colours(), id="16 bits of colour"),
        pytest.param(rotated(), id="rotated"),
        pytest.param(moving(), id="moving"),
    ],
)
@pytest.mark.parametrize("decoding", [AS_DISPLAYED, VLMEVALKIT])
def test_images_that_decoders_read_differently_are_sent_as_the_local_model_sees_them(
    data: bytes, decoding: Decoding
) -> None:
    media, png = sent(data, decoding)
    assert media == "image/png" and png != data
    with Image.open(io.BytesIO(png)) as image:
        assert image.mode == "RGB" and not image.getexif()
        shown = StoredImage.of(data, decoding).open()
        assert ImageChops.difference(image, shown).getbbox() is None
    assert sent(png, decoding) == (media, png)


def test_undecodable_images_are_an_error() -> None:
    for data in (b"", b"GIF89a", encoded("RGB", "PNG")[:40]):
        with pytest.raises(ValueError, match="image does not decode"):
            data_url(StoredImage.of(data))


def test_images_and_text_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package_files(tmp_path, monkeypatch)
    item = next(i for i in open_task("builtin-mmmu", prompt_style="default").items if i.id == "1")
    [message] = chat_messages(item)
    [original] = item.messages
    assert message["role"] == original["role"] == "user"
    shown = [data_url(image) for image in item.images]
    assert len(set(shown)) == 2
    expected = [
        {"type": "image_url", "image_url": {"url": shown.pop(0)}}
        if part["type"] == "image"
        else {"type": "text", "text": part["text"]}
        for part in original["content"]
    ]
    assert message["content"] == expected
    assert [part["type"] for part in expected] == ["text", "image_url", "text", "image_url", "text"]


def test_messages_of_plain_text_stay_plain() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert chat_messages(Item("1", messages, 8, {})) == messages


def test_reply_becomes_an_answer() -> None:
    assert parse_reply(completion("B.", **usage(301, 3))) == Completion("B.", 3, True, 301)


@pytest.mark.parametrize("finish", ["length", "content_filter", "abort", None])
def test_only_stop_is_an_end_of_its_own(finish: str | None) -> None:
    reply = completion("B")
    reply["choices"][0]["finish_reason"] = finish
    assert parse_reply(reply) == Completion("B", None, False)


def test_reply_without_text_is_an_empty_answer() -> None:
    assert parse_reply(completion(None)) == Completion("", None, True)
    assert parse_reply(completion("")).text == ""
    reply = completion(None)
    del reply["choices"][0]["message"]["content"]
    assert parse_reply(reply).text == ""


def with_reasoning(text: str | None, finish: str = "stop", **fields: Any) -> Any:
    reply = completion(text, finish, **usage(301, 30))
    reply["choices"][0]["message"].update(fields)
    return reply


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning": "Two legs."},
        {"reasoning_content": "Two legs."},
        {"reasoning": "Two legs.", "reasoning_content": "Two legs."},
        {"reasoning": None, "reasoning_content": "Two legs."},
    ],
)
def test_reasoning_of_a_server_is_apart_from_its_answer(fields: dict[str, Any]) -> None:
    found = parse_reply(with_reasoning("\n\nB", **fields), "think-opened")
    assert (found.text, found.reasoning, found.is_unfinished) == ("B", "Two legs.", False)
    assert (found.n_tokens, found.reasoning_tokens) == (30, None)


def test_server_may_count_the_tokens_of_a_reasoning() -> None:
    reply = with_reasoning("B", reasoning="Two legs.")
    reply["usage"]["completion_tokens_details"] = {"reasoning_tokens": 25}
    assert parse_reply(reply, "think-tags").reasoning_tokens == 25


def test_reasoning_of_a_server_without_an_answer_is_unfinished() -> None:
    found = parse_reply(with_reasoning(None, "length", reasoning="Two"), "think-opened")
    assert (found.text, found.is_unfinished, found.reasoning_tokens) == ("", True, 30)


def test_tags_in_the_content_of_a_reply() -> None:
    found = parse_reply(with_reasoning("Two legs.</think>\nB"), "think-opened")
    assert (found.text, found.reasoning) == ("B", "Two legs.</think>\n")
    cut = parse_reply(with_reasoning("Two legs", "length"), "think-opened")
    assert (cut.text, cut.reasoning, cut.is_unfinished) == ("", "Two legs", True)
    assert parse_reply(with_reasoning("B", reasoning=None), "think-tags") == parse_reply(
        with_reasoning("B")
    )


def test_reasoning_under_the_rule_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reasoning of 9 characters.*--reasoning think-opened"):
        parse_reply(with_reasoning("B", reasoning="Two legs."))


def test_log_probabilities_of_the_first_token() -> None:
    def offer(*pairs: tuple[str, float]) -> list[dict[str, object]]:
        return [{"token": token, "logprob": value, "bytes": None} for token, value in pairs]

    reply = completion("B")
    first = offer(("B", -0.1), ("A", -2.5), (" B", -4.0), ("A", -2.0), ("C", float("-inf")))
    reply["choices"][0]["logprobs"] = {
        "content": [
            {"token": "B", "logprob": -0.1, "top_logprobs": first},
            {"token": "<|im_end|>", "logprob": -0.5, "top_logprobs": offer(("x", -0.5))},
        ]
    }
    assert parse_reply(reply).first_logprobs == {"B": -0.1, "A": -2.0, " B": -4.0}
    none: list[Any] = [None, {}, {"content": None}, {"content": []}, {"content": [{"token": "B"}]}]
    for nothing in none:
        reply["choices"][0]["logprobs"] = nothing
        assert parse_reply(reply).first_logprobs is None


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "OK",
        {},
        {"choices": []},
        {"choices": [{"message": "B"}]},
        {"choices": {"message": {"content": "B"}}},
        {"object": "list", "data": []},
    ],
)
def test_other_replies_are_quoted(body: object) -> None:
    with pytest.raises(ValueError, match="chat completion"):
        parse_reply(body)


def test_content_in_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="list"):
        parse_reply(completion([{"type": "text", "text": "B"}]))  # type: ignore[arg-type]


@given(JSON, JSON, JSON, JSON)
def test_no_body_breaks_the_reader(body: Any, choice: Any, logprobs: Any, usage: Any) -> None:
    bodies = [body, completion("B", usage=usage), {"choices": choice}, {"choices": [choice]}]
    bodies.append(completion("B"))
    bodies[-1]["choices"][0]["logprobs"] = logprobs
    for each in bodies:
        try:
            answer = parse_reply(each)
        except ValueError:
            continue
        assert isinstance(answer.text, str)
