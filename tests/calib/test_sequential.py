from collections.abc import Iterable, Sequence
from functools import partial

import pytest
import torch
from sequential_runs import run_sequential
from tiny_models import EACH_FAMILY, prompt, prompts, small_config, small_model
from torch import Tensor, nn

from vlpress.calib.activation_store import MemoryActivationStore, ModelBlocks
from vlpress.calib.block_runner import TokenWeightFn
from vlpress.calib.capture import watch_inputs
from vlpress.calib.fixed_weights import FixedWeights
from vlpress.calib.observers import AbsMax, Hessian
from vlpress.calib.sequential import CalibrationBlock
from vlpress.calib.tap_groups import TapGroup, tap_groups
from vlpress.calib.token_weights import find_token_weights
from vlpress.model.families import LinearSpec, family_of
from vlpress.model.processing.inputs import Prompt
from vlpress.model.qwen_vl import QwenVL


def linears(model: QwenVL, *stages: str) -> list[LinearSpec]:
    specs = family_of(model.config).linears(model.config)
    return [spec for spec in specs if spec.stage in stages]


def reference_hessians(
    model: QwenVL, samples: Sequence[Prompt], names: Iterable[str]
) -> dict[str, Tensor]:
    """By whole-model forward passes, in float64."""
    rows: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str, x: Tensor) -> None:
        rows[name].append(x.reshape(-1, x.shape[-1]).double())

    watchers = {model.get_submodule(name): partial(keep, name) for name in rows}
    with torch.no_grad(), watch_inputs(watchers):
        for sample in samples:
            model([sample])
    inputs = {name: torch.cat(each) for name, each in rows.items()}
    return {name: x.t() @ x / len(x) for name, x in inputs.items()}


def reference_hessian(model: QwenVL, samples: Sequence[Prompt], name: str) -> Tensor:
    return reference_hessians(model, samples, [name])[name]


def scale_weights(model: QwenVL, group: TapGroup) -> None:
    """Change layers as quantization would, but more."""
    for spec in group.linears:
        model.get_parameter(f"{spec.name}.weight").data.mul_(0.7)


@pytest.mark.parametrize("family", EACH_FAMILY)
@pytest.mark.parametrize("true_sequential", [False, True])
def test_hessians_equal_whole_model_forwards(family: str, true_sequential: bool) -> None:
    model = small_model(small_config(family, tied=False))
    samples = prompts(model.config)
    targets = linears(model, "vision", "deepstack", "merger", "decoder", "head")
    seen: dict[str, Tensor] = {}

    def solve(group: TapGroup, hessian: Hessian, cross: object) -> None:
        for spec in group.linears:
            seen[spec.name] = hessian.values.clone()

    run_sequential(model, samples, targets, solve, true_sequential=true_sequential)
    # Of experts, the layers of one tap follow each other.
    ordered = sorted(targets, key=lambda spec: -1 if spec.expert is None else spec.expert)
    by_tap = dict.fromkeys((spec.stage, spec.block, spec.tap) for spec in targets)
    assert list(seen) == [
        spec.name for tap in by_tap for spec in ordered if (spec.stage, spec.block, spec.tap) == tap
    ]
    for name, expected in reference_hessians(model, samples, seen).items():
        torch.testing.assert_close(seen[name].double(), expected, rtol=1e-3, atol=1e-4)


def test_each_block_sees_the_solved_blocks_before_it() -> None:
    """Hessians equal those of a model in which everything earlier is already changed."""
    model = small_model()
    samples = prompts(model.config)
    targets = linears(model, "vision", "decoder")

    def solve(group: TapGroup, hessian: Hessian, cross: object) -> None:
        expected = reference_hessian(model, samples, group.linears[0].name)
        torch.testing.assert_close(hessian.values.double(), expected, rtol=1e-3, atol=1e-4)
        scale_weights(model, group)

    run_sequential(model, samples, targets, solve)


def test_without_true_sequential_a_block_sees_its_own_original() -> None:
    model, original = small_model(), small_model()
    samples = prompts(model.config)
    targets = linears(model, "decoder")
    seen: dict[str, Tensor] = {}

    def solve(group: TapGroup, hessian: Hessian, cross: object) -> None:
        seen[group.linears[0].name] = hessian.values
        scale_weights(model, group)

    run_sequential(model, samples, targets, solve, true_sequential=False)
    first = "model.layers.0.mlp.down_proj"
    expected = reference_hessian(original, samples, first)
    torch.testing.assert_close(seen[first].double(), expected, rtol=1e-3, atol=1e-4)
    second = "model.layers.1.self_attn.q_proj"
    unchanged = reference_hessian(original, samples, second)
    assert float((seen[second] - unchanged).norm() / unchanged.norm()) > 0.01


def test_shared_inputs_are_captured_once() -> None:
    model = small_model()
    groups = tap_groups(linears(model, "decoder"), "model.layers.1")
    assert [group.tap for group in groups] == ["qkv", "o", "gate_up", "down"]
    assert [len(group.linears) for group in groups] == [3, 1, 2, 1]
    assert tap_groups(linears(model, "decoder"), "model.layers.10") == []
    seen = []
    run_sequential(
        model, prompts(model.config), linears(model, "decoder"), lambda g, h, _: seen.append(g.tap)
    )
    assert seen == ["qkv", "o", "gate_up", "down"] * 2


def quarter(model: QwenVL) -> TokenWeightFn:
    return find_token_weights(FixedWeights(image=0.25), model, [])


def test_image_tokens_can_have_less_weight() -> None:
    model = small_model()
    sample = prompt(model.config, [(1, 8, 8)], 5, 7)
    target = linears(model, "decoder")[:1]
    seen: list[Hessian] = []
    run_sequential(
        model, [sample], target, lambda g, h, _: seen.append(h), token_weights=quarter(model)
    )
    assert seen[0].weight == pytest.approx(len(sample) - 16 + 16 * 0.25)
    rows: list[Tensor] = []
    with torch.no_grad(), watch_inputs({model.get_submodule(target[0].name): rows.append}):
        model([sample])
    x = rows[0].reshape(-1, 64).double()
    weights = torch.where(sample.input_ids == 90, 0.25, 1.0).double()
    expected = (x * weights[:, None]).t() @ x / weights.sum()
    torch.testing.assert_close(seen[0].values.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_a_block_gives_its_inputs_and_output(family: str) -> None:
    model, original = small_model(small_config(family)), small_model(small_config(family))
    samples = prompts(model.config)
    seen: dict[str, tuple[Tensor, list[Tensor]]] = {}

    def prepare(block: CalibrationBlock) -> None:
        spec = next(s for s in linears(model, *STAGES) if s.name.startswith(block.path + "."))
        observed = block.observe(
            lambda: {spec.name: [AbsMax(spec.in_features), AbsMax(spec.in_features)]}
        )
        first, second = observed[spec.name]
        assert isinstance(first, AbsMax) and isinstance(second, AbsMax)
        assert torch.equal(first.values, second.values)
        seen[block.path] = first.values, [block.output(sample) for sample in block.samples]
        name = norm_of(model, block.path)
        model.get_parameter(f"{name}.weight").data.mul_(2)  # changes all later inputs

    targets = linears(model, *STAGES)
    run_sequential(model, samples, targets, lambda g, h, _: None, prepare=prepare)
    stages = [stage for stage in family_of(model.config).stages if stage.part != "head"]
    blocks = [block for stage in stages for block in stage.blocks(model.config)]
    assert list(seen) == blocks
    *steps, last = blocks
    counts = [3 if block.startswith("visual.") else 4 for block in blocks]
    assert [len(outputs) for _, outputs in seen.values()] == counts
    assert all(not module._forward_pre_hooks for module in model.modules())
    first = "visual.blocks.0.attn.qkv"
    diagonal = largest_inputs(original, samples, first)
    torch.testing.assert_close(seen["visual.blocks.0"][0], diagonal)
    for block in steps:  # the same changes
        original.get_parameter(f"{norm_of(original, block)}.weight").data.mul_(2)
    first_of_last = family_of(original.config).decoder.block_linears(
        original.config, len(original.model.layers) - 1
    )[0]
    second = largest_inputs(original, samples, f"{last}.{first_of_last.name}")
    torch.testing.assert_close(seen[last][0], second)
    final = model.model.finish({"hidden": seen[last][1][0]})
    with torch.no_grad():
        torch.testing.assert_close(model.logits(final)[0], original([samples[0]])[0])


def norm_of(model: QwenVL, block: str) -> str:
    """The first norm of a block."""
    [stage] = [s for s in family_of(model.config).stages if block in s.blocks(model.config)]
    return f"{block}.{stage.norms[0].norm}"


STAGES = ("vision", "deepstack", "merger", "decoder")


def largest_inputs(model: QwenVL, samples: Sequence[Prompt], name: str) -> Tensor:
    """Per channel, by whole-model forward passes."""
    rows: list[Tensor] = []
    with torch.no_grad(), watch_inputs({model.get_submodule(name): rows.append}):
        for sample in samples:
            model([sample])
    return torch.cat([row.reshape(-1, row.shape[-1]) for row in rows]).abs().amax(dim=0)


def test_blocks_without_targets_are_not_prepared() -> None:
    model = small_model()
    targets = [spec for spec in linears(model, "decoder") if spec.block == 1]
    order: list[str] = []
    run_sequential(
        model,
        prompts(model.config),
        targets,
        lambda g, h, _: order.append(g.tap),
        prepare=lambda block: order.append(block.path),
    )
    assert order == ["model.layers.1", "qkv", "o", "gate_up", "down"]


def test_a_block_has_the_token_weights_of_the_hessians() -> None:
    model = small_model()
    sample = prompt(model.config, [(1, 8, 8)], 5, 7)
    targets = linears(model, "vision", "decoder")
    token_weights: dict[str, Tensor | None] = {}

    def prepare(block: CalibrationBlock) -> None:
        token_weights[block.path] = block.token_weights(0)

    run_sequential(
        model,
        [sample],
        targets,
        lambda g, h, _: None,
        token_weights=quarter(model),
        prepare=prepare,
    )
    assert token_weights["visual.blocks.0"] is None
    weights = token_weights["model.layers.0"]
    assert weights is not None
    assert torch.equal(weights, torch.where(sample.input_ids == 90, 0.25, 1.0))


def test_a_block_that_no_sample_reaches() -> None:
    model = small_model()
    text = [prompt(model.config, [], 5, 0)]
    target = linears(model, "vision")

    def prepare(block: CalibrationBlock) -> None:
        block.observe(lambda: {target[0].name: [AbsMax(target[0].in_features)]})

    with pytest.raises(ValueError, match=r"visual\.blocks\.0: no calibration sample reaches this"):
        run_sequential(model, text, target, lambda g, h, _: None, prepare=prepare)


class CountingBlocks(ModelBlocks):
    def __init__(self, model: QwenVL) -> None:
        super().__init__(model)
        self.open: list[str] = []
        self.order: list[str] = []
        self.most = 0

    def load(self, path: str) -> nn.Module:
        self.open.append(path)
        self.order.append(path)
        self.most = max(self.most, len(self.open))
        return super().load(path)

    def release(self, path: str) -> None:
        self.open.remove(path)


def test_one_block_is_loaded_at_a_time() -> None:
    model = small_model()
    blocks, store = CountingBlocks(model), MemoryActivationStore()
    targets = [s for s in linears(model, "decoder") if s.block == 0]
    run_sequential(
        model, prompts(model.config), targets, lambda g, h, _: None, blocks=blocks, store=store
    )
    assert blocks.most == 1
    assert blocks.open == []
    # Nothing after the last target runs.
    assert blocks.order == [
        "visual.patch_embed",
        "visual.blocks.0",
        "visual.blocks.1",
        "visual.merger",
        "model.embed_tokens",
        "model.layers.0",
    ]
    assert len(store) == 0
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_blocks_are_released_after_an_error() -> None:
    model = small_model()
    blocks = CountingBlocks(model)

    def fail(group: TapGroup, hessian: Hessian, cross: object) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        run_sequential(model, prompts(model.config), linears(model, "decoder"), fail, blocks=blocks)
    assert blocks.open == []
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_rejects() -> None:
    model = small_model()
    with pytest.raises(ValueError, match="no calibration prompts"):
        run_sequential(model, [], linears(model, "decoder"), lambda g, h, _: None)
    text = [prompt(model.config, [], 5, 0)]
    with pytest.raises(ValueError, match=r"visual\.blocks\.0\.attn\.qkv: no calibration sample"):
        run_sequential(model, text, linears(model, "vision"), lambda g, h, _: None)
