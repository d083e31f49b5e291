"""The recipe step prune_vocab, from a checkpoint folder to a pruned one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import paths
import pytest
import torch
from reference_model import encode, reference_logits, silence
from tokenizers import Tokenizer
from trained_tokenizers import ROWS, generated_text, write_source

import vlpress
from vlpress.model.checkpoint import CheckpointReader
from vlpress.model.config import ModelConfig
from vlpress.model.generation import generate
from vlpress.model.loading import load_model
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.steps.prune_vocab import PruneVocabStep
from vlpress.quant.vocabulary.kept_tokens import KeptTokens
from vlpress.quant.vocabulary.record import PrunedVocabulary

KEPT_ROWS = 640
TIED = "qwen3_5"


def write_recipe(folder: Path, text: str, more: str = "", **options: Any) -> str:
    (folder / "corpus.txt").write_text(text, encoding="utf-8")
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items())
    path = folder / "recipe.toml"
    texts = json.dumps([str(folder / "corpus.txt")])
    path.write_text(f'[[step]]\nmethod = "prune_vocab"\ntexts = {texts}\n{lines}{more}')
    return str(path)


class Pruned:
    """A source, its pruned checkpoint, and the map between them."""

    def __init__(self, source: Path, out: Path) -> None:
        self.source, self.out = source, out
        record = PrunedVocabulary.of(out)
        assert record is not None
        self.kept: KeptTokens = record.kept

    def models(self) -> tuple[QwenVL, QwenVL]:
        return load_model(self.source, device="cpu"), load_model(self.out, device="cpu")


@pytest.fixture(scope="module", params=["qwen2_5_vl", pytest.param(TIED, marks=pytest.mark.slow)])
def pruned(
    request: pytest.FixtureRequest, trained: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Pruned:
    folder = tmp_path_factory.mktemp(request.param)
    tied = request.param == TIED
    source = write_source(
        folder / "source", trained, request.param, tied=tied, shards=1 if tied else 2
    )
    recipe = write_recipe(folder, generated_text(60, seed=2), tokens=KEPT_ROWS)
    vlpress.quantize(source, folder / "out", recipe=recipe, device="cpu")
    return Pruned(source, folder / "out")


def test_kept_rows_are_the_original_ones(pruned: Pruned) -> None:
    before, after = CheckpointReader(pruned.source), CheckpointReader(pruned.out)
    assert set(after.names()) == set(before.names())
    for name in before.names():
        tensor = before.tensor(name)
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert len(tensor) == ROWS
            tensor = tensor[list(pruned.kept.ids)]
        assert torch.equal(after.tensor(name), tensor)
    assert all(after.file(name) == before.file(name) for name in before.names())


def test_ids_of_configs_are_those_of_the_same_tokens(pruned: Pruned, trained: Tokenizer) -> None:
    before, after = (ModelConfig.from_folder(folder) for folder in (pruned.source, pruned.out))
    assert after.text.vocab_size == KEPT_ROWS
    tokenizer = Tokenizer.from_file(str(pruned.out / "tokenizer.json"))
    for field in ("image_token_id", "video_token_id", "vision_start_token_id"):
        token = trained.id_to_token(getattr(before, field))
        assert tokenizer.id_to_token(getattr(after, field)) == token
    stops = Processor.from_folder(pruned.out).stop_ids
    assert {tokenizer.id_to_token(stop) for stop in stops} == {"<|im_end|>", "<|endoftext|>"}


@pytest.mark.parametrize("case", ["text", "one image"])
def test_logits_of_kept_tokens_are_equal_to_the_bit(pruned: Pruned, case: str) -> None:
    original, small = pruned.models()
    prompt, short = (encode(Processor.from_folder(f), case) for f in (pruned.source, pruned.out))
    assert pruned.kept.translate(prompt.input_ids.tolist()) == short.input_ids.tolist()
    [expected], [logits] = original([prompt]), small([short])
    assert torch.equal(logits, expected[:, pruned.kept.index])


def test_transformers_loads_it_and_gives_the_same_logits(pruned: Pruned) -> None:
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    loader: Any = AutoModelForImageTextToText
    theirs, info = loader.from_pretrained(pruned.out, dtype="float32", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    prompt = encode(Processor.from_folder(pruned.out), "one image")
    [ours] = load_model(pruned.out, device="cpu")([prompt])
    assert (reference_logits(theirs.eval(), prompt) - ours).abs().max() <= 1e-4 * ours.abs().max()
    tokenizer = AutoTokenizer.from_pretrained(pruned.out)
    text = generated_text(4, seed=11)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    assert max(ids) < KEPT_ROWS


def test_both_generate_the_same_where_no_removed_token_wins(pruned: Pruned) -> None:
    original, small = pruned.models()
    gone = [row for row in range(ROWS) if row not in pruned.kept.new_ids]
    silence(original, gone)
    options: dict[str, Any] = {"max_new_tokens": 24, "stop_ids": ()}
    for case in ("text", "one image"):
        prompts = [
            encode(Processor.from_folder(folder), case) for folder in (pruned.source, pruned.out)
        ]
        [expected] = generate(original, prompts[:1], **options)
        [answer] = generate(small, prompts[1:], **options)
        assert pruned.kept.translate(list(expected.token_ids)) == list(answer.token_ids)
        assert len(set(answer.token_ids)) > 4


def test_plan_and_record_have_the_same_figures(pruned: Pruned, trained: Tokenizer) -> None:
    recipe = str(pruned.out.parent / "recipe.toml")
    plan = vlpress.plan(pruned.source, recipe=recipe, device="cpu")
    [step] = plan["preparations"]
    [record] = json.loads((pruned.out / "vlpress.json").read_text())["preparations"]
    assert record["bytes_saved"] == step["bytes_before"] - step["bytes_after"]
    tied = ModelConfig.from_folder(pruned.source).text.tie_word_embeddings
    row_bytes = 4 * 128 * (1 if tied else 2)
    assert step["bytes_before"] - step["bytes_after"] == (ROWS - KEPT_ROWS) * row_bytes
    assert plan["candidate_bytes"] == vlpress.inspect(pruned.out)["bytes"]
    tokens = trained.get_vocab_size()
    assert (record["tokens_before"], record["tokens_after"]) == (tokens, KEPT_ROWS)
    assert (record["removed_tokens"], record["dropped_rows"]) == (tokens - KEPT_ROWS, ROWS - tokens)
    kinds = ("always_kept", "kept_for_texts", "kept_by_merge_order")
    assert sum(record[kind] for kind in kinds) == KEPT_ROWS
    lines = generated_text(60, seed=2).splitlines(keepends=True)
    held_out = [trained.encode(line).ids for line in lines[9::10]]
    removed = sum(token not in pruned.kept.new_ids for ids in held_out for token in ids)
    lengths = record["lengths"]
    assert lengths["tokens"] == sum(map(len, held_out))
    assert lengths["removed_share"] == removed / lengths["tokens"]
    assert 0 < removed < lengths["tokens_after"] - lengths["tokens"]
    assert f"{tokens} tokens ({ROWS} rows) to {KEPT_ROWS}" in step["summary"]
    assert f"{lengths['removed_share']:.2%} of held-out tokens are removed" in step["summary"]


def test_a_quantized_checkpoint_of_the_pruned_model(trained: Tokenizer, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", trained, "qwen2_5_vl", tied=False)
    (tmp_path / "held.txt").write_text(generated_text(5, seed=4), encoding="utf-8")
    more = '[[step]]\nmethod = "rtn"\nbits = 4\ngroup_size = 32\n'
    recipe = write_recipe(
        tmp_path, "", more, tokens=KEPT_ROWS, held_out=[str(tmp_path / "held.txt")]
    )
    out = tmp_path / "out"
    result = vlpress.quantize(source, out, recipe=recipe, device="cpu")
    assert ModelConfig.from_folder(out).text.vocab_size == KEPT_ROWS
    record = PrunedVocabulary.of(out)
    assert record is not None
    prompt = encode(Processor.from_folder(out), "text")
    [logits] = vlpress.load_quantized(out, device="cpu")([prompt])
    assert logits.shape[-1] == KEPT_ROWS
    # Without texts to count, tokens are kept in the order of their merges.
    assert result["preparations"][0]["kept_for_texts"] == 0
    held_out = [trained.encode(line).ids for line in generated_text(5, seed=4).splitlines(True)]
    assert result["preparations"][0]["lengths"]["tokens"] == sum(map(len, held_out))
    # Another text in the same file is another job.
    assert vlpress.quantize(source, out, recipe=recipe, device="cpu") == result
    (tmp_path / "held.txt").write_text("other", encoding="utf-8")
    with pytest.raises(ValueError, match="files"):
        vlpress.quantize(source, out, recipe=recipe, device="cpu")


@pytest.mark.slow
def test_the_example_runs_on_tiny(tmp_path: Path) -> None:
    recipe = paths.EXAMPLES / "recipes" / "w4a16-pruned-vocabulary.toml"
    assert Recipe.resolve(recipe).name == recipe.stem
    out = tmp_path / "out"
    made = vlpress.quantize("tiny", out, recipe=str(recipe), device="cpu", calib_samples=2)
    assert made["preparations"][0]["tokens_after"] == 960
    assert {layer["bits"] for layer in made["layers"]} == {4}
    prompt = encode(Processor.from_folder(out), "one image")
    [logits] = vlpress.load_quantized(out, device="cpu")([prompt])
    assert logits.shape == (len(prompt), 960)


def test_what_is_not_possible_is_refused_in_one_line(trained: Tokenizer, tmp_path: Path) -> None:
    extra = {"mtp.embed_tokens.weight": torch.zeros(ROWS, 4)}
    source = write_source(tmp_path / "source", trained, "qwen2_5_vl", tied=True, extra=extra)
    recipe = write_recipe(tmp_path, "a", tokens=KEPT_ROWS)
    with pytest.raises(ValueError, match=r"mtp.embed_tokens.weight of shape \[1280, 4\] may have"):
        vlpress.plan(source, recipe=recipe, device="cpu")
    step = PruneVocabStep(("synthetic",))
    with pytest.raises(ValueError, match="give the checkpoint's folder"):
        step.foresee(ModelConfig.from_folder(source), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 100}, "tokens is 128; allowed: at least 320, as"),
        ({"tokens": 1279}, "1280 rows would be kept for a tokenizer of"),
        ({"tokens": 0}, "step.0..tokens is 0; allowed: a whole number, at least 1"),
        ({"texts": []}, "step.0..texts"),
        ({"texts": ["missing.txt"]}, "missing.txt does not exist"),
        (
            {"texts": ["a.pdf"]},
            "'a.pdf' is of an unknown type; allowed",
        ),
        ({"targets": ["*"]}, "unknown key 'targets'"),
    ],
)
def test_options_out_of_range_are_refused(
    tiny_source: Path, options: dict[str, Any], message: str
) -> None:
    step = {"method": "prune_vocab", "texts": ["synthetic"], **options}
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        [preparation] = Recipe.from_dict({"name": "x", "step": [step]}).preparations
        preparation.foresee(ModelConfig.from_folder(tiny_source), tiny_source)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def tiny_source(trained: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"), trained, "qwen2_5_vl", tied=True)


def test_a_tokenizer_with_further_tokens_is_refused(trained: Tokenizer, tmp_path: Path) -> None:
    source = write_source(tmp_path, trained, "qwen2_5_vl", tied=True)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings["bos_token"] = "<s>"
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    step = PruneVocabStep(("synthetic",), tokens=KEPT_ROWS)
    with pytest.raises(ValueError, match=r"'<s>' has the id \d+ .* and none in tokenizer.json"):
        step.foresee(ModelConfig.from_folder(source), source)


def test_recipes_are_read_back() -> None:
    step = {"method": "prune_vocab", "texts": ["a.txt"], "tokens": 48000}
    for data in (step, {"method": "prune_vocab", "texts": ["a.txt", "b.jsonl"]}):
        recipe = Recipe.from_dict({"name": "x", "step": [data]})
        assert Recipe.from_dict(recipe.to_dict()) == recipe
        assert recipe.preparations[0].to_dict().items() >= data.items()
