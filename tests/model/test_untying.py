"""A tied model with a head of its own: the same function, a config without the tie."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import EACH_FAMILY, prompts, small_config, small_model, write_small_checkpoint

from vlpress.model.checkpoint import CheckpointReader
from vlpress.model.config import ModelConfig
from vlpress.model.loading import load_model
from vlpress.model.untying import UntiedReader, open_source, untie_model_, untied_config


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_the_function_is_unchanged(family: str) -> None:
    model = small_model(small_config(family))
    samples = prompts(model.config)[:2]
    with torch.no_grad():
        before = torch.cat(model(samples))
        untie_model_(model)
        assert torch.equal(torch.cat(model(samples)), before)
    assert not model.config.text.tie_word_embeddings
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= dict(model.named_parameters()).keys()


def test_the_flag_is_false_in_both_sections() -> None:
    flat = ModelConfig.from_dict(small_config())
    assert untied_config(flat).raw["tie_word_embeddings"] is False
    nested = untied_config(ModelConfig.from_dict(small_config("qwen3_vl")))
    assert nested.raw["tie_word_embeddings"] is False
    assert nested.raw["text_config"]["tie_word_embeddings"] is False
    assert not nested.text.tie_word_embeddings


@pytest.mark.parametrize("nested", [False, True])
def test_a_tied_checkpoint_reads_as_an_untied_one(tmp_path: Path, nested: bool) -> None:
    model = small_model(small_config())
    folder = write_small_checkpoint(tmp_path / "tied", model, nested=nested)
    plain, reader = CheckpointReader(folder), open_source(folder, untied=True)
    assert reader.names() == [*plain.names(), "lm_head.weight"]
    assert "lm_head.weight" in reader and "lm_head.weight" not in plain
    assert reader.source_name("lm_head.weight") == "lm_head.weight"
    embedding = model.model.embed_tokens.weight
    assert reader.shape("lm_head.weight") == tuple(embedding.shape)
    assert reader.nbytes("lm_head.weight") == embedding.nbytes
    assert reader.file("lm_head.weight") == plain.file("model.embed_tokens.weight")
    for read in (reader.tensor, reader.copy, lambda name: reader.lazy(name).read()):
        assert torch.equal(read("lm_head.weight"), embedding)


def test_a_stored_copy_of_a_tied_head_is_read(tmp_path: Path) -> None:
    untied = small_model(small_config(tied=False))
    folder = write_small_checkpoint(tmp_path / "untied", untied)
    reader = UntiedReader(folder)
    assert reader.names() == CheckpointReader(folder).names()
    stored = load_model(folder, device="cpu").lm_head
    assert isinstance(stored, torch.nn.Linear)
    assert torch.equal(reader.tensor("lm_head.weight"), stored.weight)
