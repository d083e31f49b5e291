"""Vision tower, merger and head as stages of the same pass as the decoder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sequential_runs import run_sequential
from tiny_models import (
    DENSE,
    make_random_model,
    make_tiny_config,
    prompt,
    prompts,
    write_checkpoint_folder,
)
from torch import Tensor

from vlpress.calib.capture import watch_inputs
from vlpress.calib.observers import Hessian
from vlpress.calib.tap_groups import TapGroup
from vlpress.model.families import family_of
from vlpress.model.processing.inputs import Prompt
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.driver.padding import pad_model_
from vlpress.quant.driver.pipeline import (
    check_format,
    load_quantized,
    make_plan,
    quantize_,
    save_quantized,
)
from vlpress.quant.methods.gptq import gptq
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.scheme import QuantScheme
from vlpress.quant.runtime.linear import QuantLinear
from vlpress.quant.targets import put_compressed, put_module, quantized_layers, weight_of

pytestmark = pytest.mark.usefixtures("reference_kernel")

TOWER = ["visual.*"]


def tower(**step: Any) -> dict[str, Any]:
    return {"method": "gptq", "targets": TOWER, "bits": 8, "group_size": -1} | step


def small_model(family: str = "qwen2_5_vl") -> QwenVL:
    """Two vision blocks, one of them with windows if the family has any, and one decoder layer."""
    vision: dict[str, Any] = {"depth": 2}
    if family == "qwen2_5_vl":
        vision["fullatt_block_indexes"] = [1]
    if family.startswith("qwen3_vl"):
        vision["deepstack_visual_indexes"] = [0]
    config = make_tiny_config(family, text={"num_hidden_layers": 1}, vision=vision)
    return make_random_model(config=config)


def recipe(*steps: dict[str, Any], **top: Any) -> Recipe:
    return Recipe.from_dict({"name": "test", "step": list(steps), **top})


def hessian_of(model: QwenVL, samples: Sequence[Prompt], name: str) -> Tensor:
    """Of whole-model forward passes, in float64."""
    rows: list[Tensor] = []

    def keep(x: Tensor) -> None:
        rows.append(x.reshape(-1, x.shape[-1]).double())

    with torch.no_grad(), watch_inputs({model.get_submodule(name): keep}):
        for sample in samples:
            model([sample])
    x = torch.cat(rows)
    return x.t() @ x / len(x)


def logits(model: QwenVL, sample: Prompt) -> Tensor:
    with torch.no_grad():
        result: Tensor = model([sample])[0]
    return result


@pytest.mark.parametrize("method", ["gptq", "rtn"])
@pytest.mark.parametrize(
    ("bits", "group_size", "most"), [(8, -1, 0.05), (4, 64, 0.8), (4, 32, 0.8)]
)
def test_only_the_tower_changes(
    family: str, method: str, bits: int, group_size: int, most: float
) -> None:
    model, original = small_model(family), small_model(family)
    samples = prompts(model.config)
    step = tower(method=method, bits=bits, group_size=group_size)
    report = quantize_(model, recipe(step), samples)
    linears = family_of(model.config).linears(model.config)
    assert sorted(quantized_layers(model)) == sorted(
        spec.name for spec in linears if spec.part == "tower"
    )
    padded = family != "qwen2_vl"
    assert [p.after for p in report.plan.padding] == [128] * padded
    for format in ("gptq", "gptq_v2", "awq"):
        with pytest.raises(ValueError, match=r"visual\.blocks\.0\.attn\.qkv .*engines that read"):
            check_format(report.plan, format)
    text, *seeing = samples
    assert torch.equal(logits(model, text), logits(original, text))
    for sample in seeing:
        expected = logits(original, sample)
        error = float((logits(model, sample) - expected).norm() / expected.norm())
        # A changed image can be routed to other experts.
        assert 0 < error < (most if model.config.text.experts is None else 0.8)


def test_gptq_beats_rounding_on_the_tower(family: str) -> None:
    original = small_model(family)
    samples = prompts(original.config)
    visuals = [visual for sample in samples for visual in sample.visuals]
    distances = {}
    for method in ("gptq", "rtn"):
        model = small_model(family)
        quantize_(model, recipe(tower(method=method, bits=3, group_size=32)), samples)
        with torch.no_grad():
            actual, expected = (
                torch.cat([f["hidden"] for f in m.encode(visuals)]) for m in (model, original)
            )
        distances[method] = float((actual - expected).norm() / expected.norm())
    assert distances["gptq"] < distances["rtn"]


def test_hessians_are_those_of_whole_forward_passes(family: str) -> None:
    """Of tower, merger and decoder, each after quantized and padded blocks."""
    model = small_model(family)
    samples = prompts(model.config)
    steps = tower(bits=4, group_size=32), tower(targets=["model.layers.*"], group_size=32)
    plan = make_plan(model.config, recipe(*steps))
    pad_model_(model, plan.padding)
    seen = []

    def solve(group: TapGroup, hessian: Hessian, cross: object) -> None:
        name = group.linears[0].name
        expected = hessian_of(model, samples, name)
        error = (hessian.values.double() - expected).norm() / expected.norm()
        assert float(error) < 1e-4, name
        for spec in group.linears:
            solved = gptq(weight_of(model, spec), hessian.values, QuantScheme(4, 32))
            put_compressed(model, spec, solved.weight)
            seen.append(spec.name)

    run_sequential(model, samples, [row.spec for row in plan.quantized], solve)
    if family in DENSE:  # the layers of an expert at one tap follow each other
        assert seen == [row.name for row in plan.quantized]
    assert sorted(seen) == sorted(row.name for row in plan.quantized)


def test_the_merger_reads_four_tiles(family: str) -> None:
    """Tile t of its input is patch t of every four, so the tiles add up to the norm's output."""
    model = small_model(family)
    config, samples = model.config, prompts(model.config)
    (first, *_) = [s for s in family_of(config).linears(config) if s.stage == "merger"]
    seen: list[Hessian] = []
    run_sequential(model, samples, [first], lambda group, hessian, _: seen.append(hessian))
    rows: list[Tensor] = []
    [binding] = family_of(config).stage("merger").norms
    norm = model.get_submodule(f"visual.merger.{binding.norm}")
    with torch.no_grad(), watch_inputs({norm: lambda x: rows.append(norm.forward(x))}):
        for sample in samples[1:]:
            model([sample])
    patches = torch.cat(rows).double()
    width = config.vision.hidden_size
    tiles = seen[0].values.double().view(4, width, 4, width)
    assert (
        seen[0].tokens * 4
        == len(patches)
        == sum(len(visual.patches) for sample in samples for visual in sample.visuals)
    )
    total = torch.stack([tiles[t, :, t] for t in range(4)]).mean(0)
    torch.testing.assert_close(total, patches.t() @ patches / len(patches), rtol=1e-4, atol=1e-5)
    for t in range(4):
        x = patches.view(-1, 4, width)[:, t]
        torch.testing.assert_close(tiles[t, :, t], x.t() @ x / len(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_the_decoder_is_calibrated_on_the_quantized_tower(family: str, method: str) -> None:
    model, sighted = small_model(family), small_model(family)
    original = small_model(family)
    samples = prompts(model.config)
    eyes = tower(method=method, bits=3, group_size=32)
    words = tower(targets=["model.layers.*"], bits=4, group_size=32)
    quantize_(model, recipe(eyes, words), samples)
    quantize_(sighted, recipe(eyes), samples)
    name = "model.layers.0.mlp.up_proj"
    # The layer reads outputs of the attention of its own block, so copy that first.
    for linear in family_of(model.config).decoder.block_linears(model.config, 0):
        if not linear.name.startswith("mlp."):
            put_module(
                sighted,
                f"model.layers.0.{linear.name}",
                model.get_submodule(f"model.layers.0.{linear.name}"),
            )
    layer = model.get_submodule(name)
    assert isinstance(layer, QuantLinear)
    weight = original.get_parameter(f"{name}.weight")
    hessian = hessian_of(sighted, samples, name)
    same = gptq(weight, hessian, QuantScheme(4, 32)).weight.integers == layer.quantized().integers
    assert float(same.float().mean()) > 0.99
    blind = hessian_of(original, samples, name)
    assert float((hessian - blind).norm() / blind.norm()) > 0.01


def test_several_pictures_do_not_meet_in_the_tower(family: str) -> None:
    """One prompt with three images gives the same Hessian as three prompts with one image."""
    model = small_model(family)
    config = model.config
    together = prompt(config, [(1, 4, 6), (1, 2, 2), (1, 8, 4)], 3, 5)
    separate = [
        Prompt(together.input_ids, together.position_ids, (visual,)) for visual in together.visuals
    ]
    specs = [s for s in family_of(config).linears(config) if s.stage in ("vision", "merger")]

    def hessians(samples: list[Prompt]) -> list[Tensor]:
        values: list[Tensor] = []
        run_sequential(
            model, samples, specs, lambda group, hessian, _: values.append(hessian.values)
        )
        return values

    for one, three in zip(hessians([together]), hessians(separate), strict=True):
        assert float((one - three).norm() / one.norm()) < 1e-5


def test_head_of_its_own() -> None:
    model = small_model()
    samples = prompts(model.config)
    words = tower(targets=["model.layers.*"], bits=4, group_size=32)
    report = quantize_(model, recipe(words, lm_head="w8a16"), samples)
    head = model.lm_head
    assert isinstance(head, QuantLinear)
    assert head.scheme == QuantScheme(8, 128)
    layer = report.layers[-1].to_dict()
    assert (layer["name"], layer["method"]) == ("lm_head", "gptq")
    assert layer["tokens"] == sum(len(sample) for sample in samples)
    assert layer["error"] < layer["rtn_error"] * 1.01
    assert Recipe.from_dict(report.to_dict()["recipe"]) == report.recipe
    expected = hessian_of(model, samples, "lm_head")
    by_hand = gptq(small_model().get_parameter("lm_head.weight"), expected, head.scheme)
    same = by_hand.weight.integers == head.quantized().integers
    assert float(same.float().mean()) > 0.99


def test_rounded_head_needs_no_prompts() -> None:
    model = small_model()
    words = tower(method="rtn", targets=["model.layers.*"], group_size=32)
    report = quantize_(model, recipe(words, lm_head="w8a16-rtn"))
    assert report.layers[-1].row.name == "lm_head"
    assert not report.recipe.needs_calibration


def test_tied_head_is_refused() -> None:
    config = make_tiny_config(tied=True)
    message = r"target 'lm_head'.*tie_word_embeddings"
    with pytest.raises(ValueError, match=message):
        make_plan(config, recipe(tower(), lm_head="w8a16"))


@pytest.mark.parametrize(
    ("format", "step", "tp"),
    [
        ("compressed-tensors", tower(method="rtn"), 1),
        # Blocks that stay in float are padded too: config.json holds one width for all.
        ("compressed-tensors", tower(method="rtn", targets=["visual.blocks.0.mlp.*"]), 2),
        ("gptq", tower(method="rtn", targets=["model.layers.0.mlp.*"], group_size=32), 4),
    ],
)
def test_padded_layers_are_written_and_read_back(
    tmp_path: Path, format: str, step: dict[str, Any], tp: int
) -> None:
    config = make_tiny_config(dtype="float32", nested=tp == 2)
    source = write_checkpoint_folder(tmp_path / "source", make_random_model(config=config))
    model = make_random_model(config=config)
    report = quantize_(model, recipe(step, tp=tp), format=format)
    (padding,) = report.plan.padding
    save_quantized(model, report, source, tmp_path / "out", format=format)
    loaded = load_quantized(tmp_path / "out", device="cpu")
    for sample in prompts(config):
        assert torch.equal(logits(loaded, sample), logits(model, sample))
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert padding.after % (128 * tp) == 0
    if padding.stage == "vision":
        assert written["vision_config"]["intermediate_size"] == padding.after
    else:
        assert written["intermediate_size"] == padding.after == 512
    written.pop("quantization_config")
    assert written.keys() == dict(config.raw).keys()
    record = json.loads((tmp_path / "out" / "vlpress.json").read_text())
    assert record["padding"] == [padding.to_dict()]
    assert record["recipe"]["tp"] == tp
    total = sum(t.nbytes for t in load_file(tmp_path / "out" / "model.safetensors").values())
    assert total == record["size"]["candidate_bytes"] == report.plan.candidate_bytes
