"""Selection of the chat template, and requirements on it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tiny_models import CHAT_TEMPLATE, WriteCheckpoint

from vlpress.model.processing.chat_templates import read_chat_template
from vlpress.model.processing.processor import Processor

MARKED = "{#- the one to use -#}" + CHAT_TEMPLATE
# As text-only models have it: joins strings, so the parts of an image question are an error.
TEXT_ONLY = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content"
    " + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
SKIPS_PARTS = TEXT_ONLY.replace(
    "+ message.content\n", "+ (message.content if message.content is string else '')\n"
).replace("+ message.content +", "+ (message.content if message.content is string else '') +")
PROCESSOR, LEGACY, JINJA = "processor_config.json", "chat_template.json", "chat_template.jinja"
NAMED, TOKENIZER = "additional_chat_templates/default.jinja", "tokenizer_config.json"


@pytest.fixture
def folder(tmp_path: Path, write_checkpoint: WriteCheckpoint) -> Path:
    """A checkpoint without a chat template."""
    folder = write_checkpoint(tmp_path / "model")
    put(folder, TOKENIZER, None)
    return folder


def put(folder: Path, file: str, template: Any) -> None:
    """Write a template into the file that is named; None into JSON leaves the field out."""
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".jinja":
        path.write_text(template, encoding="utf-8")
        return
    content = json.loads(path.read_text()) if path.is_file() else {}
    content.pop("chat_template", None)
    if template is not None:
        content["chat_template"] = template
    path.write_text(json.dumps(content))


def chosen(folder: Path) -> str:
    template = Processor.from_folder(folder).tokenizer.chat_template
    assert isinstance(template, str)
    return template


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (LEGACY, TOKENIZER),  # Qwen2.5-VL-7B-Instruct, -32B- and -72B-Instruct are published so
        (JINJA, TOKENIZER),
        (NAMED, TOKENIZER),
        (LEGACY, JINJA),
        (JINJA, NAMED),
        (PROCESSOR, LEGACY),
        (PROCESSOR, JINJA),
        (PROCESSOR, NAMED),
        (PROCESSOR, TOKENIZER),
    ],
)
def test_the_template_of_the_processor_wins(folder: Path, first: str, second: str) -> None:
    put(folder, second, TEXT_ONLY)
    put(folder, first, MARKED)
    assert chosen(folder) == MARKED
    image = {"type": "image"}
    processor = Processor.from_folder(folder)
    prompt = processor.encode([{"role": "user", "content": [image]}], visuals=[_visual(processor)])
    assert (prompt.input_ids == processor.config.image_token_id).sum() == 4
    put(folder, first, TEXT_ONLY)
    put(folder, second, MARKED)
    with pytest.raises(ValueError, match=first.rpartition("/")[2]):
        Processor.from_folder(folder)


def _visual(processor: Processor) -> Any:
    from PIL import Image

    return processor.image(Image.new("RGB", (56, 56)))


@pytest.mark.parametrize("tokenizer", [None, TEXT_ONLY, [{"name": "x", "template": TEXT_ONLY}]])
def test_the_order_is_that_of_transformers(folder: Path, tokenizer: Any) -> None:
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor

    put(folder, TOKENIZER, tokenizer)
    # From the last of the processor's files to the first: each one that is added wins.
    for file in (NAMED, JINJA, LEGACY, PROCESSOR):
        if file == LEGACY:
            (folder / NAMED).unlink()
            (folder / NAMED).parent.rmdir()
        put(folder, file, f"{{#- {file} -#}}" + CHAT_TEMPLATE)
        theirs = Qwen2_5_VLProcessor.get_processor_dict(folder)[0]["chat_template"]
        assert theirs.startswith(f"{{#- {file} -#}}")
        assert chosen(folder) == theirs
        assert read_chat_template(folder).file == folder / file


@pytest.mark.parametrize(
    "value",
    [
        [{"name": "tool_use", "template": TEXT_ONLY}, {"name": "default", "template": MARKED}],
        {"tool_use": TEXT_ONLY, "default": MARKED},
    ],
)
def test_of_named_templates_the_default_is_used(folder: Path, value: Any) -> None:
    put(folder, TOKENIZER, value)
    assert chosen(folder) == MARKED


def test_null_is_no_template(folder: Path) -> None:
    put(folder, TOKENIZER, MARKED)
    for file in (LEGACY, PROCESSOR):
        (folder / file).write_text('{"chat_template": null}')
    assert chosen(folder) == MARKED


@pytest.mark.parametrize("file", [PROCESSOR, LEGACY, TOKENIZER])
@pytest.mark.parametrize(
    "value",
    [
        5,
        True,
        ["x"],
        [],
        {},
        [{"name": "default"}],
        [{"template": MARKED}],
        {"tool_use": MARKED},
        {"default": [MARKED]},
        "\ud800" + MARKED,
    ],
)
def test_a_field_without_a_template(folder: Path, file: str, value: Any) -> None:
    put(folder, file, value)
    assert_one_line(folder, file)


def assert_one_line(folder: Path, name: str) -> None:
    with pytest.raises(ValueError) as caught:
        Processor.from_folder(folder)
    message = str(caught.value)
    assert f"{folder / name}" in message and len(message.splitlines()) == 1


@pytest.mark.parametrize("file", [PROCESSOR, LEGACY])
@pytest.mark.parametrize("content", [b"[]", b"null", b"{", b"\xff\xfe{\x00}\x00", b""])
def test_files_that_are_no_json_object(folder: Path, file: str, content: bytes) -> None:
    put(folder, TOKENIZER, MARKED)
    (folder / file).write_bytes(content)
    assert_one_line(folder, file)


def test_a_file_that_git_lfs_has_not_fetched(folder: Path) -> None:
    (folder / JINJA).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert_one_line(folder, JINJA)
    with pytest.raises(ValueError, match="git lfs pull"):
        Processor.from_folder(folder)


def test_a_template_that_writes_without_end(folder: Path) -> None:
    put(folder, JINJA, "{{ 'x' * 3000000 }}" + MARKED)
    assert_one_line(folder, JINJA)
    with pytest.raises(ValueError, match="3000"):
        Processor.from_folder(folder)
    put(folder, JINJA, "{{ 'x' * 3000 }}" + MARKED)
    assert len(Processor.from_folder(folder).encode([{"role": "user", "content": "Hi"}])) > 3000


def test_a_file_that_is_no_text(folder: Path) -> None:
    (folder / JINJA).write_bytes(MARKED.encode("utf-16"))
    assert_one_line(folder, JINJA)


@pytest.mark.parametrize(
    "template",
    [
        TEXT_ONLY,
        SKIPS_PARTS,
        "",
        "{{ messages }}",
        "{{ raise_exception('roles must\\nalternate') }}",
        "{% for message in messages %}",
        "{{ messages[0]['content'][7]['x'].y }}",
        "{{ 1 / 0 }}",
        "{% for number in range(10**9) %}x{% endfor %}",
        "{{ 'x' * 10**15 }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ " + "(" * 2000 + ")" * 2000 + " }}",
        CHAT_TEMPLATE.replace("<|image_pad|>", "<image>"),
        CHAT_TEMPLATE.replace("<|image_pad|>", "<|image_pad|><|image_pad|>"),
        CHAT_TEMPLATE.replace("<|image_pad|>", "<|video_pad|>"),
        CHAT_TEMPLATE.replace("part['text']", "''"),
    ],
)
@pytest.mark.parametrize("file", [JINJA, TOKENIZER])
def test_templates_that_place_no_image(folder: Path, template: str, file: str) -> None:
    put(folder, file, template)
    assert_one_line(folder, file)


def test_conflicting_files(folder: Path) -> None:
    put(folder, NAMED, MARKED)
    put(folder, LEGACY, MARKED)
    with pytest.raises(ValueError, match=r"chat_template\.json.*additional_chat_templates"):
        Processor.from_folder(folder)


def test_a_folder_of_templates_without_a_default(folder: Path) -> None:
    put(folder, TOKENIZER, MARKED)
    put(folder, "additional_chat_templates/tool_use.jinja", MARKED)
    with pytest.raises(ValueError, match=r"tool_use\.jinja.*chat_template\.jinja"):
        Processor.from_folder(folder)
    put(folder, JINJA, MARKED)
    assert chosen(folder) == MARKED


def test_no_template_at_all(folder: Path) -> None:
    with pytest.raises(ValueError, match="chat template"):
        Processor.from_folder(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_a_file_that_may_not_be_read(folder: Path) -> None:
    put(folder, JINJA, MARKED)
    (folder / JINJA).chmod(0)
    with pytest.raises(OSError, match=JINJA):
        Processor.from_folder(folder)


@pytest.mark.parametrize(
    "fault",
    ["{{ raise_exception('no system turn,\nplease') }}", "{{ 1 / 0 }}", "{{ '\\ud800' }}"],
)
def test_a_template_that_fails_for_some_messages(folder: Path, fault: str) -> None:
    guard = "{% if messages[0]['role'] == 'system' %}" + fault + "{% endif %}"
    put(folder, JINJA, guard + CHAT_TEMPLATE)
    processor = Processor.from_folder(folder)
    question = {"role": "user", "content": "x"}
    processor.encode([question])
    with pytest.raises(ValueError, match="system, user") as caught:
        processor.encode([{"role": "system", "content": "y"}, question])
    assert len(str(caught.value).splitlines()) == 1
