from pathlib import Path
from typing import Any

import pytest
import torch
from reference_model import build_reference, reference_logits
from shrink_jobs import NARROW, load_float, logits_of, samples_of, shrink, source_of
from tiny_models import (
    new_name,
    small_config,
    small_model,
    write_checkpoint_folder,
    write_small_checkpoint,
)

from vlpress.model.checkpoint import CheckpointReader
from vlpress.model.config import ModelConfig
from vlpress.model.processing.inputs import Prompt
from vlpress.quant.methods.shrink.channels import channel_scores, choose_channels
from vlpress.quant.methods.shrink.refit import refit

DOWN = "model.layers.{}.mlp.down_proj"


def inputs_of_down(folder: Path, given: list[Prompt], layer: int) -> torch.Tensor:
    """The inputs of a layer's down_proj over all samples, by a forward of the whole model."""
    model, seen = load_float(folder), list[torch.Tensor]()
    linear = model.get_submodule(DOWN.format(layer))
    hook = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        for prompt in given:
            model([prompt])
    hook.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("shards", [1, 3])
def test_all_channels_give_the_source_to_the_byte(tmp_path: Path, shards: int) -> None:
    source = source_of(tmp_path, shards=shards, nested=True)
    record = shrink(source, tmp_path / "out", **NARROW | {"keep": 1.0})
    assert record["blocks"] == []
    reader, before = CheckpointReader(tmp_path / "out"), CheckpointReader(source)
    assert reader.canonical() == before.canonical()
    assert {reader.file(name) for name in reader.names()} == {
        before.file(name) for name in before.names()
    }
    assert all(torch.equal(reader.tensor(name), before.tensor(name)) for name in before.names())
    config = ModelConfig.from_folder(tmp_path / "out")
    assert config.raw == ModelConfig.from_folder(source).raw
    for name in ("tokenizer_config.json", "preprocessor_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def test_first_layer_is_the_closed_form_on_explicit_inputs(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    given = samples_of(source)
    record = shrink(source, tmp_path / "out", **NARROW)
    inputs = inputs_of_down(source, given, 0)
    hessian = inputs.T @ inputs / len(inputs)
    before, after = CheckpointReader(source), CheckpointReader(tmp_path / "out")
    name = f"{DOWN.format(0)}.weight"
    weight = before.tensor(name)
    kept = choose_channels(channel_scores(weight, "wanda", energies=hessian.diagonal()), 64)
    expected = refit(weight, hessian, kept, damp_percent=0.01)
    torch.testing.assert_close(after.tensor(name), expected, rtol=1e-3, atol=1e-4)
    for rows in ("gate", "up"):
        name = f"model.layers.0.mlp.{rows}_proj.weight"
        assert torch.equal(after.tensor(name), before.tensor(name)[kept])
    first = record["blocks"][0]
    assert first["block"] == "model.layers.0"
    assert first["tokens"] == len(inputs)
    assert 0 < first["error"] < first["removed_error"] < 1


def test_second_layer_is_measured_on_the_narrower_first_one(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    given = samples_of(source)
    shrink(source, tmp_path / "out", **NARROW)
    # Up to the input of the second down_proj, `half` is the narrower model so far.
    half = tmp_path / "half"
    mixed(tmp_path / "out", source, half)
    after, name = CheckpointReader(tmp_path / "out"), f"{DOWN.format(1)}.weight"
    weight = CheckpointReader(source).tensor(name)
    solved = []
    for folder in (half, source):
        inputs = inputs_of_down(folder, given, 1)
        hessian = inputs.T @ inputs / len(inputs)
        kept = choose_channels(channel_scores(weight, "wanda", energies=hessian.diagonal()), 64)
        solved.append(refit(weight, hessian, kept, damp_percent=0.01))
    torch.testing.assert_close(after.tensor(name), solved[0], rtol=1e-3, atol=1e-4)
    assert float((after.tensor(name) - solved[1]).abs().max()) > 1e-3


def mixed(narrow: Path, wide: Path, out: Path) -> None:
    """Write the wide model with the MLP of the first layer of the narrow one, padded with zeros."""
    model, reader = load_float(wide), CheckpointReader(narrow)
    with torch.no_grad():
        for name in ("gate_proj", "up_proj", "down_proj"):
            part = reader.tensor(f"model.layers.0.mlp.{name}.weight")
            weight = model.get_parameter(f"model.layers.0.mlp.{name}.weight")
            weight.zero_()
            weight[: part.shape[0], : part.shape[1]] = part
    write_small_checkpoint(out, model)


@pytest.mark.slow
def test_refit_is_nearer_to_the_source(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    given = samples_of(source)
    expected = logits_of(source, given)
    errors, choices = {}, dict[str, dict[str, Any]]()
    choices["refit"] = {}
    choices["removed"] = {"refit": False}
    choices["random"] = {"refit": False, "score": "random"}
    for name, options in choices.items():
        shrink(source, tmp_path / name, **NARROW | options)
        errors[name] = float((logits_of(tmp_path / name, given) - expected).square().mean())
    assert errors["refit"] < errors["removed"] < errors["random"]


@pytest.mark.parametrize("score", ["magnitude", "random"])
def test_choice_without_samples(tmp_path: Path, score: Any) -> None:
    source = source_of(tmp_path, dtype=torch.bfloat16)
    record = shrink(source, tmp_path / "out", [], **NARROW | {"score": score, "refit": False})
    assert [set(block) for block in record["blocks"]] == [{"block", "score", "refit"}] * 2
    before, after = CheckpointReader(source), CheckpointReader(tmp_path / "out")
    chosen = []
    for layer in range(2):
        weight = before.tensor(f"{DOWN.format(layer)}.weight")
        path = f"model.layers.{layer}"
        kept = choose_channels(channel_scores(weight, score, seed=f"0 {path}"), 64)
        assert torch.equal(after.tensor(f"{DOWN.format(layer)}.weight"), weight[:, kept])
        chosen.append(kept.tolist())
    assert chosen[0] != chosen[1]
    assert after.dtype(f"{DOWN.format(0)}.weight") == torch.bfloat16


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_tower_and_decoder_load_in_transformers(tmp_path: Path, family: str) -> None:
    source = source_of(tmp_path, family)
    given = samples_of(source)
    options = NARROW | {"targets": ("decoder", "tower"), "keep": 0.7}
    record = shrink(source, tmp_path / "out", **options)
    stages = [(width["stage"], width["after"]) for width in record["widths"]]
    assert stages == [("vision", {"qwen2_5_vl": 16, "qwen3_vl": 32}[family]), ("decoder", 80)]
    assert [block["block"].split(".")[0] for block in record["blocks"]] == sorted(
        (block["block"].split(".")[0] for block in record["blocks"]), reverse=True
    )
    ours = load_float(tmp_path / "out")
    reference = build_reference(ours)
    for prompt in given:
        with torch.no_grad():
            (actual,) = ours([prompt])
        expected = reference_logits(reference, prompt)
        difference = float((actual - expected).abs().max() / expected.abs().max())
        assert difference < 1e-4


def test_biases_are_selected_with_their_rows(tmp_path: Path) -> None:
    source = source_of(tmp_path, "qwen3_vl")
    options = NARROW | {"targets": ("tower",), "score": "magnitude", "refit": False}
    shrink(source, tmp_path / "out", [], **options)
    before, after = CheckpointReader(source), CheckpointReader(tmp_path / "out")
    fc1, fc2 = "visual.blocks.1.mlp.linear_fc1", "visual.blocks.1.mlp.linear_fc2"
    kept = choose_channels(channel_scores(before.tensor(f"{fc2}.weight"), "magnitude"), 16)
    assert torch.equal(after.tensor(f"{fc1}.bias"), before.tensor(f"{fc1}.bias")[kept])
    assert torch.equal(after.tensor(f"{fc2}.bias"), before.tensor(f"{fc2}.bias"))


def test_tower_without_images_is_refused(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    texts = [prompt for prompt in samples_of(source) if not prompt.visuals]
    with pytest.raises(ValueError, match="no calibration sample reaches this layer"):
        shrink(source, tmp_path / "out", texts, **NARROW | {"targets": ("tower",)})
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_result_is_the_same_to_the_byte(tmp_path: Path) -> None:
    source = source_of(tmp_path, dtype=torch.bfloat16, shards=2)
    for name in ("a", "b"):
        shrink(source, tmp_path / name, **NARROW | {"targets": ("decoder", "tower")})
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}


def test_token_weights_of_the_recipe_apply(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    weights = {"token_weights": {"image": 0.0, "text": 1.0}}
    plain = shrink(source, tmp_path / "a", **NARROW)
    text = shrink(source, tmp_path / "b", calibration=weights, **NARROW)
    assert text["blocks"][0]["tokens"] < plain["blocks"][0]["tokens"]


def test_module_for_multi_token_prediction_is_narrowed_by_magnitude(tmp_path: Path) -> None:
    raw = small_config("qwen3_5", mtp_num_hidden_layers=1)
    model = small_model(raw)
    own = {
        f"mtp.layers.0.mlp.{name}.weight": torch.randn(shape)
        for name, shape in {
            "gate_proj": (128, 64),
            "up_proj": (128, 64),
            "down_proj": (64, 128),
        }.items()
    }
    source = write_checkpoint_folder(tmp_path / "source", model, tokenizer=False, extra=own)
    record = shrink(source, tmp_path / "out", **NARROW)
    assert record["blocks"][-1] == {
        "block": "mtp.layers.0",
        "score": "magnitude",
        "refit": False,
    }
    after = CheckpointReader(tmp_path / "out")
    down = own["mtp.layers.0.mlp.down_proj.weight"]
    kept = choose_channels(channel_scores(down, "magnitude"), 64)
    assert torch.equal(after.tensor("mtp.layers.0.mlp.down_proj.weight"), down[:, kept])
    assert torch.equal(
        after.tensor("mtp.layers.0.mlp.up_proj.weight"),
        own["mtp.layers.0.mlp.up_proj.weight"][kept],
    )
    assert new_name("model.norm.weight") == after.source_name("model.norm.weight")


def test_overflow_is_refused(tmp_path: Path) -> None:
    model = small_model()
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.up_proj.weight").mul_(1e30)
        model.get_parameter("model.layers.0.mlp.gate_proj.weight").mul_(1e30)
    source = write_small_checkpoint(tmp_path / "source", model)
    with pytest.raises(ValueError, match=r"input of model.layers.0.mlp.down_proj is not finite"):
        shrink(source, tmp_path / "out", **NARROW | {"refit": False})
