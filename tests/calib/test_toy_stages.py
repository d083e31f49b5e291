"""Calibration of a family with stages that no built-in one has: features for several layers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from sequential_runs import run_sequential
from tiny_models import prompts
from torch import Tensor, nn
from toy_family import registered, toy_model

from vlpress.calib.activation_store import MemoryActivationStore, State
from vlpress.calib.capture import watch_inputs
from vlpress.calib.observers import CrossMoment, Hessian
from vlpress.calib.sequential import BlockResult
from vlpress.calib.tap_groups import TapGroup
from vlpress.model.families import family_of
from vlpress.model.processing.inputs import Prompt
from vlpress.model.qwen_vl import QwenVL


@pytest.fixture(autouse=True)
def toy() -> Iterator[None]:
    with registered():
        yield


def shrink(model: QwenVL, group: TapGroup) -> None:
    for spec in group.linears:
        model.get_parameter(f"{spec.name}.weight").data.mul_(0.7)


def inputs_of(model: QwenVL, samples: list[Prompt], module: str) -> list[Tensor]:
    """Inputs of a module by whole-model forward passes, one per sample that reaches it."""
    rows: list[Tensor] = []
    with torch.no_grad(), watch_inputs({model.get_submodule(module): rows.append}):
        for sample in samples:
            model([sample])
    return rows


class Recorder(MemoryActivationStore):
    def __init__(self) -> None:
        super().__init__()
        self.states: dict[tuple[str, int], State] = {}

    def put(self, block: str, sample: int, state: State, *, persistent: bool = True) -> None:
        self.states[block, sample] = state
        super().put(block, sample, state, persistent=persistent)


def test_both_paths_are_those_of_whole_models() -> None:
    """GPTAQ's pass over all blocks: the float path has the float tower's features."""
    model, original = toy_model(), toy_model()
    samples = prompts(model.config)
    targets = family_of(model.config).linears(model.config)
    store = Recorder()
    order: list[str] = []

    def solve(group: TapGroup, hessian: Hessian, cross: CrossMoment | None) -> None:
        name = group.linears[0].name
        assert cross is not None
        rows = [
            torch.cat([x.flatten(0, -2) for x in inputs_of(m, samples, name)]).double()
            for m in (model, original)
        ]
        quantized, clean = rows
        expected = quantized.t() @ quantized / len(quantized)
        torch.testing.assert_close(hessian.values.double(), expected, rtol=1e-3, atol=1e-3)
        weight = original.get_parameter(f"{name}.weight").detach()
        outputs = weight.double() @ ((clean - quantized).t() @ quantized) / len(quantized)
        scale = float(hessian.values.abs().max())
        torch.testing.assert_close(
            cross.of_outputs(weight, 0).double(), outputs, rtol=0, atol=1e-3 * scale
        )
        shrink(model, group)

    def done(result: BlockResult) -> None:
        order.append(result.block)

    run_sequential(
        model,
        samples,
        targets,
        solve,
        asymmetric=[spec.name for spec in targets],
        store=store,
        on_block_done=done,
    )
    assert order == [
        "visual.blocks.0",
        "visual.blocks.1",
        "visual.more.0",
        "visual.more.1",
        "visual.merger",
        "model.layers.0",
        "model.layers.1",
    ]
    assert len(store) == 0
    for layer, key in enumerate(("deepstack.0", "deepstack.1")):
        for sample in (1, 2, 3):
            both = [
                store.states[f"model.layers.{layer}{suffix}", sample] for suffix in ("", " (float)")
            ]
            assert all(key in state for state in both)
            assert not torch.equal(both[0][key], both[1][key])
            features = original.encode(samples[sample].visuals)
            assert torch.equal(both[1][key], torch.cat([each[key] for each in features]))
        block = f"model.layers.{layer}"
        reached = range(len(samples)) if layer else (1, 2, 3)  # the text sample diverges later
        expected = inputs_of(original, samples, block)
        for sample in reached:
            assert torch.equal(store.states[f"{block} (float)", sample]["hidden"], expected[sample])
    assert "deepstack.0" not in store.states["model.layers.1", 1]
    assert all(key != "visual_rows" for key in store.states["model.layers.0", 0])


@pytest.mark.parametrize("true_sequential", [False, True])
def test_checkpoints_inside_a_layer_keep_the_features(true_sequential: bool) -> None:
    """The second layer's inputs are the same with and without checkpoints in the first."""
    model, original = toy_model(), toy_model()
    samples = prompts(model.config)
    targets = [s for s in family_of(model.config).linears(model.config) if s.part == "decoder"]
    seen: list[str] = []

    def solve(group: TapGroup, hessian: Hessian, cross: CrossMoment | None) -> None:
        name = group.linears[0].name
        rows = torch.cat([x.flatten(0, -2) for x in inputs_of(original, samples, name)]).double()
        expected = rows.t() @ rows / len(rows)
        torch.testing.assert_close(hessian.values.double(), expected, rtol=1e-3, atol=1e-3)
        seen.append(group.tap)

    run_sequential(model, samples, targets, solve, true_sequential=true_sequential)
    assert seen == ["qkv", "o", "gate_up", "down"] * 2


def test_the_output_of_a_block_is_what_its_stage_says() -> None:
    model = toy_model()
    samples = prompts(model.config)
    targets = [s for s in family_of(model.config).linears(model.config) if s.part == "tower"]
    outputs: dict[str, Tensor] = {}
    largest: dict[str, tuple[float, ...]] = {}
    run_sequential(
        model,
        samples,
        targets,
        lambda *_: None,
        prepare=lambda block: outputs.update({block.path: block.output(1)}),
        on_block_done=lambda result: largest.update({result.block: result.largest}),
    )
    [features] = model.encode(samples[1].visuals)
    for path, key in (
        ("visual.more.0", "deepstack.0"),
        ("visual.more.1", "deepstack.1"),
        ("visual.merger", "hidden"),
    ):
        torch.testing.assert_close(outputs[path], features[key], rtol=1e-5, atol=1e-5)
    assert largest["visual.more.1"][0] == pytest.approx(float(outputs["visual.more.1"].abs().max()))
    assert all(isinstance(module, nn.Module) for module in model.children())
