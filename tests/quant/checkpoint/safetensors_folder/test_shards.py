"""Side files: the processor of a quantized checkpoint must load as its source's does."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import CHAT_TEMPLATE, WriteCheckpoint

from vlpress.model.families import SIDE_FILES
from vlpress.model.processing.processor import Processor
from vlpress.quant.checkpoint.safetensors_folder.shards import copy_side_files


@pytest.fixture
def source(tmp_path: Path, write_checkpoint: WriteCheckpoint) -> Path:
    return write_checkpoint(tmp_path / "source")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def test_existing_files_are_copied_byte_for_byte(source: Path, target: Path) -> None:
    (source / "notes.txt").write_text("note")
    (source / "vocab.json").mkdir()
    copied = copy_side_files(source, target, SIDE_FILES)
    names = ("generation_config.json", "preprocessor_config.json", "tokenizer.json")
    assert sorted(copied) == [*names, "tokenizer_config.json"]
    assert sorted(path.name for path in target.iterdir()) == sorted(copied)
    assert all((target / name).read_bytes() == (source / name).read_bytes() for name in copied)


@pytest.mark.parametrize(
    "file",
    ["chat_template.jinja", "additional_chat_templates/default.jinja"],
)
def test_templates_are_copied_from_both_locations(source: Path, target: Path, file: str) -> None:
    (source / file).parent.mkdir(exist_ok=True)
    (source / file).write_text("{{ 'Be brief. ' }}" + CHAT_TEMPLATE)
    (source / "additional_chat_templates").mkdir(exist_ok=True)
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    assert file in copy_side_files(source, target, ("config.json", *SIDE_FILES))
    question = [{"role": "user", "content": "Which?"}]
    prompts = [Processor.from_folder(folder).encode(question) for folder in (source, target)]
    assert prompts[0].input_ids.tolist() == prompts[1].input_ids.tolist()
    assert prompts[1].input_ids.tolist()[0] != 257  # the text before <|im_start|>
