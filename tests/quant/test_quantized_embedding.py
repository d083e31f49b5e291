"""Embedding, head and tower quantized, on all families: planned, written, read back and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from blockwise_jobs import finish, job, source_of
from tiny_models import FAMILIES, prompt, prompts, small_config, small_model

import vlpress
from vlpress.model.byte_parts import checkpoint_bytes
from vlpress.model.checkpoint import CheckpointReader
from vlpress.model.config import ModelConfig
from vlpress.model.loading import load_model
from vlpress.model.part_names import BYTE_PARTS
from vlpress.quant.checkpoint.export import export
from vlpress.quant.checkpoint.verify import first_tokens
from vlpress.quant.driver.journal import Journal
from vlpress.quant.driver.pipeline import check_format, load_quantized, quantize_, save_quantized
from vlpress.quant.plan.plan import Plan, make_plan
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.runtime.embedding import QuantEmbedding
from vlpress.quant.targets import compressed_layers

pytestmark = pytest.mark.usefixtures("reference_kernel")

EMBEDDING = {"method": "rtn", "bits": 4, "group_size": 32, "targets": ["model.embed_tokens"]}
HEAD = {"method": "rtn", "bits": 8, "group_size": 32, "targets": ["lm_head"]}
DECODER = {"method": "gptq", "bits": 4, "group_size": 32}
TOWER = DECODER | {"targets": ["visual.*"]}
ALL = [TOWER, EMBEDDING, HEAD, DECODER]


def plan_of(steps: list[dict[str, Any]], *, tied: bool = True, **top: Any) -> Plan:
    config = ModelConfig.from_dict(small_config(tied=tied))
    return make_plan(config, Recipe.from_dict({"name": "test", "step": steps, **top}))


def cases(*quick: tuple[str, bool]) -> list[Any]:
    """All families, tied and untied; those that are not listed are slow."""
    every = [(family, tied) for family in FAMILIES for tied in (True, False)]
    return [pytest.param(*c, marks=() if c in quick else pytest.mark.slow) for c in every]


@pytest.mark.parametrize(("family", "tied"), cases(("qwen2_5_vl", True), ("qwen3_vl", False)))
def test_streamed_bytes_are_those_of_the_way_in_memory(
    tmp_path: Path, family: str, tied: bool
) -> None:
    source = source_of(tmp_path, family, steps=[] if tied else ["lm_head"])
    samples = prompts(ModelConfig.from_folder(source))[1:3]
    streaming = job(source, ALL, samples, tie=False)
    written = finish(streaming, tmp_path / "work", tmp_path / "out")

    model = load_model(source, device="cpu")
    report = quantize_(model, streaming.recipe, samples)
    save_quantized(model, report, source, tmp_path / "other")
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()}

    config = json.loads(written["config.json"])
    assert config["tie_word_embeddings"] is False
    if tied and "text_config" in config:
        assert config["text_config"]["tie_word_embeddings"] is False
    loaded = load_quantized(tmp_path / "out", device="cpu")
    assert isinstance(loaded.model.embed_tokens, QuantEmbedding)
    assert {"model.embed_tokens", "lm_head"} <= compressed_layers(loaded).keys()
    with torch.no_grad():
        assert torch.equal(torch.cat(loaded(samples)), torch.cat(model(samples)))
    # Read block by block, as the smoke test does, the first token is that of the whole model.
    (text,) = first_tokens(tmp_path / "out", samples[0], 1, device="cpu")
    logits = loaded([samples[0]])[0][-1]
    logits[[loaded.config.image_token_id, loaded.config.video_token_id]] = -torch.inf
    assert text == int(logits.argmax())


def test_the_decoder_is_calibrated_on_the_rounded_embedding(tmp_path: Path) -> None:
    """At 2 bits the first layer's inputs change, and with them what GPTQ makes of it."""
    source = source_of(tmp_path)
    samples = prompts(ModelConfig.from_folder(source))[:2]
    first = {"targets": ["model.layers.0.self_attn.q_proj"]}
    steps = [
        EMBEDDING | {"bits": 2},
        *(
            {**DECODER, "targets": [f"model.layers.0.self_attn.{n}"]}
            for n in ("q_proj", "k_proj", "v_proj")
        ),
    ]
    errors = []
    for name, kept in (("rounded", steps), ("float", steps[1:])):
        report = job(source, kept, samples, tie=False).quantize(Journal(tmp_path / name))
        (layer,) = [x for x in report.layers if x.row.name == first["targets"][0]]
        errors.append(layer.final_error)
    assert errors[0] != errors[1]


def test_a_run_resumes_after_the_embedding(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    samples = prompts(ModelConfig.from_folder(source))[1:2]
    streaming = job(source, ALL, samples, tie=False)
    whole = finish(streaming, tmp_path / "whole", tmp_path / "out")

    class StopError(Exception):
        pass

    def stop(done: int, total: int, detail: str) -> None:
        if detail.startswith("model.layers.0.self_attn.o_proj"):
            raise StopError

    journal = Journal(tmp_path / "parts")
    with pytest.raises(StopError):
        streaming.quantize(journal, stop)
    assert journal.records[0]["block"] == "model.embed_tokens"
    assert "lm_head" not in [layer["name"] for r in journal.records for layer in r["layers"]]
    assert finish(streaming, tmp_path / "parts", tmp_path / "resumed") == whole


def test_untying_alone_writes_the_head_apart(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    streaming = job(source, [DECODER | {"method": "rtn"}], [], tie=False)
    finish(streaming, tmp_path / "work", tmp_path / "out")
    head = CheckpointReader(tmp_path / "out").tensor("lm_head.weight")
    assert torch.equal(head, CheckpointReader(source).tensor("model.embed_tokens.weight"))
    assert not load_quantized(tmp_path / "out", device="cpu").config.text.tie_word_embeddings


@pytest.mark.parametrize(("family", "tied"), cases(("qwen2_vl", True), ("qwen3_vl_moe", True)))
def test_bytes_by_part_are_those_of_the_files(tmp_path: Path, family: str, tied: bool) -> None:
    source = source_of(tmp_path, family, steps=[] if tied else ["lm_head"])
    rounded = [step | {"method": "rtn"} for step in ALL]
    streaming = job(source, rounded, [], tie=False)
    finish(streaming, tmp_path / "work", tmp_path / "out")
    plan = streaming.plan
    before = checkpoint_bytes(plan.config, CheckpointReader(source))
    after = checkpoint_bytes(plan.config, CheckpointReader(tmp_path / "out"))
    assert plan.source_parts == before and plan.candidate_parts == after
    assert (before["head"] == 0) == tied and after["head"] > 0
    assert tuple(before) == tuple(after) == BYTE_PARTS
    inspected = vlpress.inspect(tmp_path / "out")
    assert inspected["parts"] == after and inspected["base_parts"] == before
    assert inspected["bytes"] == sum(after.values()) == plan.candidate_bytes
    sizes = {layer["name"]: layer["bytes"] for layer in inspected["layers"]}
    tokens, hidden = plan.config.text.vocab_size, plan.config.text.hidden_size
    assert sizes["model.embed_tokens"] == tokens * (hidden // 2 + hidden // 32 * 2) + 16
    assert after["embedding"] == sizes["model.embed_tokens"] and after["head"] == sizes["lm_head"]


def test_classes_of_another_writer_are_told_apart(tmp_path: Path) -> None:
    """Groups for the classes Linear and Embedding have other bits, as vlpress names them."""
    source = source_of(tmp_path)
    steps = [EMBEDDING, DECODER | {"method": "rtn", "bits": 8}]
    finish(job(source, steps, [], tie=False), tmp_path / "work", tmp_path / "out")
    before = {n: w.scheme for n, w in compressed_layers(load_quantized(tmp_path / "out")).items()}
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    for group in config["quantization_config"]["config_groups"].values():
        group["targets"] = ["Embedding" if group["weights"]["num_bits"] == 4 else "Linear"]
    path.write_text(json.dumps(config))
    after = {n: w.scheme for n, w in compressed_layers(load_quantized(tmp_path / "out")).items()}
    assert before == after and before["model.embed_tokens"].bits == 4


def test_patterns_of_linear_layers_leave_the_embedding_out() -> None:
    for targets in (["*"], ["model.*"], ["re:.*"]):
        plan = plan_of([DECODER | {"method": "rtn", "targets": targets}], tied=False)
        assert "model.embed_tokens" not in plan.contents.schemes
        assert "lm_head" in plan.contents.schemes or targets == ["model.*"]
    for targets in (["embedding"], ["*embed_tokens"], ["re:.*embed_.*"]):
        plan = plan_of([EMBEDDING | {"targets": targets}], tied=False)
        assert [row.name for row in plan.quantized] == ["model.embed_tokens"]


def test_a_shared_embedding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model.embed_tokens.*tie_word_embeddings.*`tie = false`"):
        plan_of([EMBEDDING])
    with pytest.raises(ValueError, match=r"'lm_head'.*tie_word_embeddings.*`tie = false`"):
        plan_of([HEAD])
    assert not plan_of([HEAD], tie=False).config.text.tie_word_embeddings


def test_only_plain_rounding_fits_an_embedding() -> None:
    for change, found in (
        ({"method": "gptq"}, "method gptq"),
        ({"activations": "dynamic"}, "int8 dynamic activations"),
    ):
        with pytest.raises(ValueError, match=rf"{found}.*allowed: method rtn with bits"):
            plan_of([EMBEDDING | change], tied=False)
    fp8 = {"method": "rtn", "grid": "fp8", "targets": ["model.embed_tokens"]}
    with pytest.raises(ValueError, match=r"fp8.*allowed: method rtn with bits"):
        plan_of([fp8], tied=False)
    with pytest.raises(ValueError, match=r"model.embed_tokens.*64.*48"):
        plan_of([EMBEDDING | {"group_size": 48}], tied=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 3}, "3 bits.*2, 4, 8"),
        ({"symmetric": False}, "zero points"),
    ],
)
def test_embeddings_that_engines_misread_are_refused(change: dict[str, Any], message: str) -> None:
    plan = plan_of([EMBEDDING | change], tied=False)
    with pytest.raises(ValueError, match=f"model.embed_tokens has {message}"):
        check_format(plan, "compressed-tensors")


def test_formats_whose_readers_have_a_float_embedding_refuse_it(tmp_path: Path) -> None:
    plan = plan_of([EMBEDDING, DECODER], tied=False)
    for format in ("gptq", "gptq_v2", "awq", "fp8"):
        with pytest.raises(ValueError, match=f"format {format}: model.embed_tokens"):
            check_format(plan, format)
    source = source_of(tmp_path)
    finish(job(source, [EMBEDDING], [], tie=False), tmp_path / "work", tmp_path / "out")
    with pytest.raises(ValueError, match=r"cannot be exported.*model.embed_tokens"):
        export(tmp_path / "out", tmp_path / "gptq", "gptq")
    assert not (tmp_path / "gptq").exists()
    export(tmp_path / "out", tmp_path / "same", "compressed-tensors")
    weights = (tmp_path / name / "model.safetensors" for name in ("out", "same"))
    assert len({path.read_bytes() for path in weights}) == 1


def test_a_quantized_embedding_with_a_tied_head_is_refused(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    finish(job(source, [EMBEDDING], [], tie=False), tmp_path / "work", tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    tied = json.loads(path.read_text()) | {"tie_word_embeddings": True}
    path.write_text(json.dumps(tied))
    with pytest.raises(ValueError, match=r"model.embed_tokens is quantized.*tie_word_embeddings"):
        load_quantized(tmp_path / "out")


def test_answers_come_from_looked_up_rows() -> None:
    """The decoding loop looks up rows too: generation equals that of the dequantized table."""
    from vlpress.model.generation import generate

    model = small_model(small_config(tied=False))
    quantize_(model, Recipe.from_dict({"name": "test", "step": [EMBEDDING]}))
    question = prompt(model.config, [], 6, 5)
    (answer,) = generate(model, [question], max_new_tokens=4, stop_ids=frozenset())
    layer = model.model.embed_tokens
    assert isinstance(layer, QuantEmbedding)
    plain = torch.nn.Embedding(96, 64, _weight=layer.quantized().dequantize())
    model.model.embed_tokens = plain
    (expected,) = generate(model, [question], max_new_tokens=4, stop_ids=frozenset())
    assert answer.token_ids == expected.token_ids
