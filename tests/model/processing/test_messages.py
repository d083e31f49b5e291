"""Forms of messages: all to one, and unsupported parts are errors that name them."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from vlpress.model.processing.chat import MEDIA_KEYS, parse_messages, split_messages, strip_media
from vlpress.model.processing.parts import PLACEHOLDERS
from vlpress.model.processing.visual_options import ImageOptions, VideoOptions


def png(level: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), level).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(4):
        (tmp_path / f"{index}.png").write_bytes(png(index))
    (tmp_path / "v.mp4").write_bytes(b"never opened")
    return tmp_path


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def part(raw: Any, folder: Path) -> Any:
    """A single part as it is parsed."""
    (message,) = parse_messages(user(raw), folder=folder)
    assert message["role"] == "user"
    (parsed,) = message["content"]
    return parsed


@pytest.mark.parametrize(
    "raw",
    [
        {"type": "image", "image": "0.png"},
        {"type": "image", "image": "file://{folder}/0.png"},
        {"type": "image", "image": "{folder}/0.png"},
        {"type": "image", "path": "0.png"},
        {"type": "image", "url": "0.png"},
        {"type": "image", "image": {"bytes": None, "path": "0.png"}},
        {"type": "image_url", "image_url": "0.png"},
        {"type": "image_url", "image_url": {"url": "file://{folder}/0.png"}},
        {"type": "image_url", "image_url": {"url": "0.png", "detail": "auto"}},
        {"type": "image", "image": "0.png", "text": None, "video": None, "max_pixels": None},
        {"image": "0.png"},
        {"image_url": {"url": "0.png"}},
    ],
    ids=json.dumps,
)
def test_images_in_files(raw: dict[str, Any], folder: Path) -> None:
    written = json.loads(json.dumps(raw).replace("{folder}", str(folder)))
    assert part(written, folder) == {"type": "image", "image": folder / "0.png"}


def test_images_in_the_message(folder: Path) -> None:
    encoded = base64.b64encode(png()).decode()
    url = f"data:image/png;base64,{encoded}"
    for raw in (
        {"type": "image", "image": png()},
        {"type": "image", "base64": encoded},
        {"type": "image", "bytes": png()},
        {"type": "image", "image": url},
        {"type": "image_url", "image_url": url},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image", "image": {"bytes": png(), "path": "gone.png"}},
    ):
        assert part(raw, folder) == {"type": "image", "image": png()}
    image = Image.new("RGB", (3, 3))
    assert part({"type": "image", "image": image}, folder)["image"] is image


def test_video_forms(folder: Path) -> None:
    for raw in (
        {"type": "video", "video": "v.mp4"},
        {"type": "video", "video": f"file://{folder}/v.mp4"},
        {"type": "video", "path": "v.mp4", "fps": None},
        {"type": "video_url", "video_url": {"url": "v.mp4"}},
        {"video": "v.mp4"},
    ):
        assert part(raw, folder) == {"type": "video", "video": folder / "v.mp4"}
    frames = {"type": "video", "video": ["0.png", f"file://{folder}/1.png", png(2)]}
    assert part(frames, folder)["video"] == [folder / "0.png", folder / "1.png", png(2)]


def test_options_are_kept_by_value(folder: Path) -> None:
    size = {"min_pixels": 784, "max_pixels": 1568, "resized_height": 56, "resized_width": 84}
    image = {"type": "image", "image": "0.png", **size}
    file = {"type": "video", "video": "v.mp4", **size, "total_pixels": 10**6, "fps": 1.5}
    file |= {"min_frames": 4, "max_frames": 8, "video_start": 0, "video_end": 2.5}
    frames = {"type": "video", "video": ["0.png"], "sample_fps": 4.0, "max_pixels": 784}
    _, (first, second, third) = split_messages(
        parse_messages(user(image, file, frames), folder=folder)
    )
    assert first.options == ImageOptions(**size)
    assert second.options == VideoOptions(
        **size,
        total_pixels=10**6,
        fps=1.5,
        min_frames=4,
        max_frames=8,
        video_start=0,
        video_end=2.5,
    )
    assert third.options == VideoOptions(sample_fps=4.0, max_pixels=784)
    assert (
        part({"type": "image", "image": "0.png", "max_pixels": 784.0}, folder)["max_pixels"] == 784
    )


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({"type": "image", "image": "0.png", "fps": 2.0}, "'fps'"),
        ({"type": "image", "image": "0.png", "detail": "high"}, "'detail'"),
        ({"type": "image", "image": {"path": "0.png", "max_pixels": 784}}, "'max_pixels'"),
        ({"type": "image_url", "image_url": {"url": "0.png", "detail": "low"}}, "'detail'"),
        ({"type": "image", "image": "0.png", "path": "1.png"}, "image, path"),
        ({"type": "image", "image": "0.png", "max_pixels": 0}, "max_pixels 0"),
        ({"type": "image", "image": "0.png", "max_pixels": "784"}, "max_pixels '784'"),
        ({"type": "image", "image": "0.png", "max_pixels": True}, "max_pixels True"),
        ({"type": "image", "image": "0.png", "max_pixels": 1.5}, r"max_pixels 1\.5"),
        ({"type": "image", "image": "0.png", "min_pixels": 10**12}, "min_pixels 1000000000000"),
        ({"type": "image", "image": "0.png", "min_pixels": 9, "max_pixels": 8}, "min_pixels 9"),
        ({"type": "image", "image": "0.png", "resized_height": 56}, "resized_width"),
        ({"type": "video", "video": "v.mp4", "fps": 1.0, "nframes": 4}, "nframes and fps"),
        ({"type": "video", "video": "v.mp4", "min_frames": 4, "nframes": 4}, "min_frames"),
        ({"type": "video", "video": "v.mp4", "min_frames": 8, "max_frames": 6}, "max_frames 6"),
        ({"type": "video", "video": "v.mp4", "max_frames": 1}, "max_frames 1"),
        ({"type": "video", "video": "v.mp4", "sample_fps": 1.0}, "sample_fps"),
        ({"type": "video", "video": "v.mp4", "raw_fps": 1.0}, "'raw_fps'"),
        ({"type": "video", "video": "v.mp4", "fps": 0}, "fps 0"),
        ({"type": "video", "video": "v.mp4", "fps": float("nan")}, "fps nan"),
        ({"type": "video", "video": "v.mp4", "video_start": -1}, "video_start -1"),
        ({"type": "video", "video": ["0.png"], "nframes": 4}, "nframes 4"),
        ({"type": "video", "video": ["0.png"], "video_end": 4}, "video_end 4"),
        ({"type": "video", "video": ["0.png"], "fps": 1.0, "sample_fps": 2.0}, r"sample_fps 2\.0"),
        ({"type": "video", "video": []}, "0 frames"),
        ({"type": "video", "video": png()}, "bytes|PNG"),
        ({"type": "text", "text": "a", "image": "0.png"}, "'image'"),
        ({"type": "text", "text": "a", "cache_control": {}}, "'cache_control'"),
        ({"type": "text"}, "text None"),
        ({"type": "text", "text": 5}, "text 5"),
        ({"type": "audio", "audio": "a.wav"}, "'audio'"),
        ({"type": ["image"], "image": "0.png"}, "'image'"),
        ({"text": "a", "image": "0.png"}, "needs a type"),
        ({"path": "0.png"}, "needs a type"),
        ("a", "'a'"),
        (None, "None"),
        ({"type": "image", "image": "https://x.org/a.png"}, "download it first"),
        ({"type": "video", "video": "https://x.org/a.mp4"}, "download it first"),
        ({"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}, "download it first"),
    ],
)
def test_parts_are_refused_by_name(raw: Any, named: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=named) as refusal:
        parse_messages(user(raw), folder=folder)
    assert "\n" not in str(refusal.value)


def test_missing_files_are_named(folder: Path) -> None:
    for raw in (
        {"type": "image", "image": "9.png"},
        {"type": "video", "video": "file:///9.mp4"},
        {"type": "video", "video": ["0.png", "9.png"]},
    ):
        with pytest.raises(FileNotFoundError, match=r"9\.(png|mp4)"):
            parse_messages(user(raw), folder=folder)


def user_text(text: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": "N"}]


def test_marks_take_the_columns_in_order(folder: Path) -> None:
    messages = user_text("<image>first <video><image>") + user_text("<image>")
    parsed = parse_messages(
        messages, images=["0.png", {"bytes": png(1)}, "2.png"], videos=["v.mp4"], folder=folder
    )
    assert parsed[0]["content"] == [
        {"type": "image", "image": folder / "0.png"},
        {"type": "text", "text": "first "},
        {"type": "video", "video": folder / "v.mp4"},
        {"type": "image", "image": png(1)},
    ]
    assert parsed[1] == {"role": "assistant", "content": "N"}
    assert parsed[2]["content"] == [{"type": "image", "image": folder / "2.png"}]


def test_bare_parts_take_the_columns_in_order(folder: Path) -> None:
    bare = {"type": "image", "image": None, "max_pixels": 784}
    own = {"type": "image", "image": "2.png"}
    messages = user(bare, own, {"type": "text", "text": "a<image>b"}, {"type": "video", "fps": 4.0})
    (parsed,) = parse_messages(
        messages, images=["0.png", "1.png"], videos=[["0.png", "1.png"]], folder=folder
    )
    assert parsed["content"] == [
        {"type": "image", "max_pixels": 784, "image": folder / "0.png"},
        {"type": "image", "image": folder / "2.png"},
        {"type": "text", "text": "a"},
        {"type": "image", "image": folder / "1.png"},
        {"type": "text", "text": "b"},
        {"type": "video", "fps": 4.0, "video": [folder / "0.png", folder / "1.png"]},
    ]
    frames = {"type": "video", "nframes": 2}
    with pytest.raises(ValueError, match="nframes 2"):
        parse_messages(user(frames), videos=[["0.png", "1.png"]], folder=folder)


def test_an_index_names_the_next_entry_of_the_column(folder: Path) -> None:
    def shown(*indices: Any) -> list[dict[str, Any]]:
        nothing = {"text": None, "type": "image"}
        return user(
            *({**nothing, "index": index} for index in indices),
            {"index": None, "text": "a", "type": "text"},
        )

    columns: dict[str, Any] = {"images": ["0.png", "1.png"], "folder": folder}
    (parsed,) = parse_messages(shown(0, 1), **columns)
    assert parsed["content"] == [
        {"type": "image", "image": folder / "0.png"},
        {"type": "image", "image": folder / "1.png"},
        {"type": "text", "text": "a"},
    ]
    assert parse_messages(shown(None, 1), **columns) == [parsed]
    bare = user({"type": "image"}, {"type": "image"}, {"type": "text", "text": "a"})
    assert parse_messages(shown(0, 1), allow_placeholders=True) == bare
    for indices, refused in [((1, 0), "index 1"), ((0, 0), "index 0"), ((0, True), "index True")]:
        with pytest.raises(ValueError, match=refused):
            parse_messages(shown(*indices), **columns)
    with pytest.raises(ValueError, match=r"image part .*index 0\b"):
        parse_messages(user({"type": "image", "image": "0.png", "index": 0}), folder=folder)
    with pytest.raises(ValueError, match="image part"):
        parse_messages(shown(0))


def test_one_entry_needs_no_list(folder: Path) -> None:
    image = Image.new("RGB", (3, 3))
    for column in ("0.png", png(), {"path": "0.png"}, image):
        message = parse_messages(user_text("<image>"), images=column, folder=folder)[0]
        (content,) = message["content"]
        assert content["type"] == "image" and content["image"] in (folder / "0.png", png(), image)


@pytest.mark.parametrize(
    ("text", "images", "counts"),
    [
        ("<image>", [], (1, 0)),
        ("<image><image>", ["0.png"], (2, 1)),
        ("none", ["0.png"], (0, 1)),
        ("<image>", ["0.png", "1.png"], (1, 2)),
        ([{"type": "image"}], [], (1, 0)),
    ],
)
def test_marks_and_entries_must_match(
    text: Any, images: list[str], counts: tuple[int, int], folder: Path
) -> None:
    with pytest.raises(ValueError, match=rf"\b{counts[0]}\b.*\b{counts[1]} image"):
        parse_messages(user_text(text), images=images, folder=folder)


def test_marks_are_text_without_a_column() -> None:
    assert parse_messages(user_text("<image>a<video>")) == user_text("<image>a<video>")
    assert parse_messages(user_text("<video>"), images=[]) == user_text("<video>")


@pytest.mark.parametrize("kind", ["image", "video"])
def test_parts_without_data(kind: str) -> None:
    for bare in ({"type": kind}, {"type": kind, kind: None}, {"type": f"{kind}_url"}):
        with pytest.raises(ValueError, match=f"{kind} part"):
            parse_messages(user(bare))
        assert parse_messages(user(bare), allow_placeholders=True) == user({"type": kind})
        with pytest.raises(ValueError, match=kind):
            parse_messages(user(bare), images=None if kind == "image" else [])


def test_column_entries_are_read(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        parse_messages(user_text("<image>"), images=["nowhere.png"], folder=folder)
    with pytest.raises(ValueError, match="image None"):
        parse_messages(user_text("<image>"), images=[None], folder=folder)


def test_sharegpt(folder: Path) -> None:
    turns = [
        {"from": "system", "value": "be brief"},
        {"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": "12"},
    ]
    assert parse_messages(turns, images="0.png", folder=folder) == [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": folder / "0.png"},
                {"type": "text", "text": "\nWhat?"},
            ],
        },
        {"role": "assistant", "content": "12"},
    ]
    with pytest.raises(ValueError, match="function_call"):
        parse_messages([{"from": "function_call", "value": "x"}])


@pytest.mark.parametrize("token", PLACEHOLDERS)
def test_placeholder_tokens_are_refused(token: str) -> None:
    for content in (f"a{token}", [{"type": "text", "text": token}]):
        with pytest.raises(ValueError, match=re.escape(token)):
            parse_messages(user_text(content))
    with pytest.raises(ValueError, match=re.escape(token)):
        parse_messages(user_text(f"<image>{token}"), images=[png()])


@pytest.mark.parametrize("key", MEDIA_KEYS)
def test_media_in_other_keys_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"'{key}'"):
        parse_messages([{"role": "user", "content": "a", key: ["0.png"]}])
    assert parse_messages([{"role": "user", "content": "a", key: None}]) == user_text("a")[:1]


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        (None, "None"),
        ("hello", "'hello'"),
        ([], "at least one"),
        ({"role": "user", "content": "a"}, "list"),
        (["hello"], "'hello'"),
        ([{"role": "user"}], "role and content"),
        ([{"content": "a"}], "role and content"),
        ([{"role": None, "content": "a"}], "role and content"),
        ([{"role": 5, "content": "a"}], "role and content"),
        ([{"role": "User", "content": "a"}], "'User'"),
        ([{"role": "assistant", "content": None}], "role and content"),
        ([{"role": "user", "content": 5}], "content 5"),
        ([{"role": "user", "content": {"type": "text", "text": "a"}}], "content {"),
        ([{"role": "user", "content": "\ud800"}], "ud800"),
    ],
)
def test_malformed_messages(messages: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse_messages(messages)


def test_other_keys_are_the_templates() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}], "name": None}
    assert parse_messages([called]) == [
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}
    ]


def test_split_messages_leave_bare_placeholders(folder: Path) -> None:
    messages = [
        {"role": "system", "content": "be brief", "name": "s"},
        *user({"type": "image_url", "image_url": {"url": "0.png"}}, {"type": "text", "text": "b"}),
        *user({"type": "video", "video": "v.mp4", "fps": 1}),
    ]
    plain, sources = split_messages(parse_messages(messages, folder=folder))
    assert plain[0] == messages[0]
    assert plain[1]["content"] == [{"type": "image"}, {"type": "text", "text": "b"}]
    assert plain[2]["content"] == [{"type": "video"}]
    assert [(source.kind, source.data) for source in sources] == [
        ("image", folder / "0.png"),
        ("video", folder / "v.mp4"),
    ]
    assert sources[1].options == VideoOptions(fps=1)


def test_media_of_any_form_are_stripped() -> None:
    messages = user({"type": "image_url", "image_url": object()}, {"type": "text", "text": "b"})
    messages += user({"type": "video", "video": 5, "fps": 0})
    assert parse_messages(strip_media(messages), allow_placeholders=True) == [
        *user({"type": "image"}, {"type": "text", "text": "b"}),
        *user({"type": "video"}),
    ]


def test_parsing_twice_changes_nothing(folder: Path) -> None:
    messages = [
        *user_text("<image>a"),
        *user({"type": "video", "video": ["0.png"], "fps": 1.0}, {"type": "image", "image": png()}),
    ]
    parsed = parse_messages(messages, images=["0.png"], folder=folder)
    assert parse_messages(parsed) == parsed


WORDS = st.sampled_from(
    (
        *("user", "image", "video", "text", "image_url", "<image>", "<video>", "data:", "file://"),
        *("http://x", "0.png", "\0", "\ud800", "<|image_pad|>", "a\nb", "role", "content", "fps"),
    )
)
KEYS = st.sampled_from(
    (
        *("type", "text", "image", "video", "image_url", "url", "path", "bytes", "base64", "role"),
        *("content", "from", "value", "fps", "nframes", "max_pixels", "min_pixels", "video_start"),
    )
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=20)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
PARTS = st.lists(
    st.fixed_dictionaries({"type": WORDS}, optional={"text": JSON, "image": JSON, "video": JSON})
    | st.dictionaries(KEYS, SCALARS, max_size=4)
    | JSON,
    max_size=3,
)
MESSAGES = st.lists(st.fixed_dictionaries({"role": WORDS, "content": PARTS | JSON}) | JSON) | JSON


@given(messages=MESSAGES, images=JSON, videos=JSON)
@example(messages=json.loads("[" * 200 + "]" * 200), images=None, videos=None)
@example(messages=user({"type": "video", "video": "v", "fps": 10**400}), images=None, videos=None)
def test_any_json_is_parsed_or_refused_in_a_line(messages: Any, images: Any, videos: Any) -> None:
    try:
        parsed = parse_messages(messages, images=images, videos=videos)
    except (ValueError, FileNotFoundError) as error:
        assert type(error) in (ValueError, FileNotFoundError)
        assert str(error).isprintable()
        return
    for message in parsed:
        assert isinstance(message["role"], str)
        content = message["content"]
        for raw in [] if isinstance(content, str) else content:
            assert raw["type"] in ("text", "image", "video")
            assert raw["type"] != "text" or raw.keys() == {"type", "text"}
            if raw["type"] == "image":
                assert isinstance(raw["image"], bytes | Path)
    split_messages(parsed)
