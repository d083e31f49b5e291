"""The float states of samples, and cross moments."""

from collections.abc import Iterable, Sequence

import pytest
import torch
from sequential_runs import run_sequential
from tiny_models import DENSE, EACH_FAMILY, prompt, prompts, small_config, small_model
from torch import Tensor, nn

from vlpress.calib.activation_store import MemoryActivationStore, State
from vlpress.calib.capture import watch_inputs
from vlpress.calib.fixed_weights import FixedWeights
from vlpress.calib.observers import CrossMoment, Hessian
from vlpress.calib.sequential import CalibrationBlock
from vlpress.calib.tap_groups import TapGroup
from vlpress.calib.token_weights import find_token_weights
from vlpress.model.families import LinearSpec, family_of
from vlpress.model.processing.inputs import Prompt
from vlpress.model.qwen_vl import QwenVL

STAGES = ("vision", "deepstack", "merger", "decoder", "head")


def linears(model: QwenVL, *stages: str) -> list[LinearSpec]:
    specs = family_of(model.config).linears(model.config)
    return [spec for spec in specs if spec.stage in stages]


def all_inputs_of(
    model: QwenVL, samples: Sequence[Prompt], names: Iterable[str]
) -> dict[str, Tensor]:
    """Inputs of layers by whole-model forward passes, float64 `[T, K]`."""
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    watchers = {model.get_submodule(name): each.append for name, each in rows.items()}
    with torch.no_grad(), watch_inputs(watchers):
        for sample in samples:
            model([sample])
    return {
        name: torch.cat([row.reshape(-1, row.shape[-1]) for row in each]).double()
        for name, each in rows.items()
    }


def inputs_of(model: QwenVL, samples: Sequence[Prompt], name: str) -> Tensor:
    return all_inputs_of(model, samples, [name])[name]


def cross_of(clean: Tensor, seen: Tensor, weights: Tensor | None = None) -> Tensor:
    weights = torch.ones(len(seen)) if weights is None else weights
    return ((clean - seen) * weights.double()[:, None]).t() @ seen / weights.double().sum()


def outputs_of(group: TapGroup) -> int:
    return sum(spec.out_features for spec in group.linears)


def shrink(model: QwenVL, group: TapGroup) -> None:
    """Change layers as quantization would, but more."""
    for spec in group.linears:
        weight = model.get_submodule(spec.name).weight  # of an expert a view, not a parameter
        assert isinstance(weight, Tensor)
        weight.data.mul_(0.7)


@pytest.mark.parametrize("family", DENSE)  # refused for experts
@pytest.mark.parametrize("true_sequential", [False, True])
def test_cross_moments_are_those_of_two_whole_models(family: str, true_sequential: bool) -> None:
    """All layers are calibrated and changed, from the tower to the head."""
    raw = small_config(family, tied=False)
    model, original = small_model(raw), small_model(raw)
    samples = prompts(model.config)
    targets = linears(model, *STAGES)
    names = [spec.name for spec in targets]
    clean = all_inputs_of(original, samples, names)
    seen: list[str] = []

    def solve(group: TapGroup, hessian: Hessian, cross: CrossMoment | None) -> None:
        name = group.linears[0].name
        seen.append(name)
        assert cross is not None
        if true_sequential:
            quantized = inputs_of(model, samples, name)
            expected = cross_of(clean[name], quantized)
            scale = float(hessian.values.abs().max())
            weight = original.get_parameter(f"{name}.weight").detach()
            of_outputs = cross.of_outputs(weight, 0).double()
            torch.testing.assert_close(
                of_outputs, weight.double() @ expected, rtol=0, atol=1e-4 * scale
            )
            assert cross.projected == (2 * outputs_of(group) < group.in_features)
        first = group.linears[0].block == 0 and group.linears[0].stage == "vision"
        if first and (group.tap == "qkv" or not true_sequential):
            assert not cross.values.any()
        else:
            assert float(cross.values.norm() / hessian.values.norm()) > 1e-3, name
        shrink(model, group)

    run_sequential(
        model, samples, targets, solve, true_sequential=true_sequential, asymmetric=names
    )
    assert {"lm_head", targets[-2].name} <= set(seen)
    assert any(name.startswith("visual.merger.") for name in seen)


def halves(inputs: Tensor) -> Tensor:
    return (inputs * 2).round() / 2


@pytest.mark.parametrize("true_sequential", [False, True])
def test_statistics_are_those_of_rounded_inputs(true_sequential: bool) -> None:
    """Gate rounds its input and up does not, although they share a tap; so does every down."""
    raw = small_config("qwen2_5_vl")
    model, original = small_model(raw), small_model(raw)
    samples = prompts(model.config)
    targets = linears(model, "vision", "decoder")
    names = [spec.name for spec in targets]
    roundings = {name: halves for name in names if name.endswith(("gate_proj", "down_proj"))}
    rounded: set[str] = set()

    def solve(group: TapGroup, hessian: Hessian, cross: CrossMoment | None) -> None:
        name = group.linears[0].name
        assert cross is not None and {s.name in roundings for s in group.linears} == {
            group.rounding is halves
        }
        if true_sequential:
            inputs = inputs_of(model, samples, name)
            multiplied = inputs if group.rounding is None else halves(inputs)
            scale = float(hessian.values.abs().max())
            expected = multiplied.t() @ multiplied / len(inputs)
            torch.testing.assert_close(hessian.values.double(), expected, rtol=0, atol=1e-4 * scale)
            assert hessian.input_range.largest == pytest.approx(float(inputs.abs().max()), rel=1e-5)
            deviation = inputs_of(original, samples, name) - inputs
            weight = original.get_parameter(f"{name}.weight").detach()
            torch.testing.assert_close(
                cross.of_outputs(weight, 0).double(),
                weight.double() @ deviation.t() @ multiplied / len(inputs),
                rtol=0,
                atol=1e-3 * scale,
            )
        rounded.add(name) if group.rounding else None
        shrink(model, group)

    run_sequential(
        model,
        samples,
        targets,
        solve,
        true_sequential=true_sequential,
        asymmetric=names,
        roundings=roundings,
    )
    assert rounded == set(roundings)


class RecordingStore(MemoryActivationStore):
    """Records every state that was put, and the maximum number of stored states."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[tuple[str, int], State] = {}
        self.most = 0

    def put(self, block: str, sample: int, state: State, *, persistent: bool = True) -> None:
        assert (block, sample) not in self.seen
        self.seen[block, sample] = state
        super().put(block, sample, state, persistent=persistent)
        self.most = max(self.most, len(self))


def block_inputs(model: QwenVL, sample: Prompt, block: str) -> Tensor:
    rows: list[Tensor] = []
    with torch.no_grad(), watch_inputs({model.get_submodule(block): rows.append}):
        model([sample])
    return rows[0]


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_float_states_are_bit_identical_to_the_float_model(family: str) -> None:
    model, original = (small_model(small_config(family)) for _ in range(2))
    samples = prompts(model.config)
    store = RecordingStore()
    targets = linears(model, *STAGES)
    run_sequential(
        model,
        samples,
        targets,
        lambda group, h, c: shrink(model, group),
        asymmetric=[spec.name for spec in targets if spec.expert is None][-1:],
        store=store,
    )
    floats = {key: state for key, state in store.seen.items() if key[0].endswith(" (float)")}
    with_images = {n for block, n in floats if block == "model.layers.0 (entry) (float)"}
    assert with_images == {n for n, sample in enumerate(samples) if sample.visuals}
    floats = {key: state for key, state in floats.items() if "(entry)" not in key[0]}
    stages = family_of(model.config).stages
    _, *blocks = [block for stage in stages for block in stage.blocks(model.config)]
    assert {block for block, _ in floats} == {f"{block} (float)" for block in blocks}
    for (name, number), state in floats.items():
        block = name.removesuffix(" (float)")
        _, is_kept, index = block.partition("deepstack_merger_list.")
        key = f"deepstack.{index}" if is_kept else "hidden"
        expected = block_inputs(original, samples[number], block)
        assert torch.equal(state[key], expected), name
        assert not torch.equal(state[key], store.seen[block, number][key])
        assert torch.equal(state["cos"], store.seen[block, number]["cos"])
    # The text sample diverges only after the first decoder block.
    assert {n for block, n in floats if block == "model.layers.0 (float)"} == {1, 2, 3}
    assert len(store) == 0


def test_no_float_state_without_need() -> None:
    model = small_model()
    samples = prompts(model.config)
    targets = linears(model, "decoder")

    def floats(*asymmetric: str) -> set[str]:
        store = RecordingStore()
        run_sequential(
            small_model(), samples, targets, lambda *_: None, asymmetric=asymmetric, store=store
        )
        assert len(store) == 0
        return {block for block, _ in store.seen if block.endswith("(float)")}

    assert floats() == set()
    assert floats("model.layers.0.mlp.down_proj") == set()  # the float copy of one block suffices
    assert floats("model.layers.1.self_attn.q_proj") == {"model.layers.1 (float)"}


def test_untargeted_blocks_run_once_per_state() -> None:
    """Only a layer of the first vision block and the last decoder block are targeted."""
    model, original = small_model(), small_model()
    samples = prompts(model.config)
    decoder = linears(model, "decoder")
    targets = [*linears(model, "vision")[:1], *[s for s in decoder if s.block == 1]]
    crosses: dict[str, Tensor] = {}

    def solve(group: TapGroup, hessian: Hessian, cross: CrossMoment | None) -> None:
        name = group.linears[0].name
        if cross is not None:
            quantized = inputs_of(model, samples, name)
            expected = cross_of(inputs_of(original, samples, name), quantized)
            torch.testing.assert_close(cross.values.double(), expected, rtol=1e-3, atol=1e-4)
            crosses[name] = cross.values
        shrink(model, group)

    second = "model.layers.1.self_attn.k_proj"  # of its group
    run_sequential(model, samples, targets, solve, asymmetric=[second])
    assert list(crosses) == ["model.layers.1.self_attn.q_proj"]
    assert bool(crosses["model.layers.1.self_attn.q_proj"].any())


def test_token_weights_are_in_both_moments() -> None:
    model, original = small_model(), small_model()
    sample = prompt(model.config, [(1, 8, 8)], 5, 7)
    visual = sample.input_ids == model.config.image_token_id
    weights = torch.where(visual, 0.25, 2.0)
    seen: list[str] = []

    def solve(group: TapGroup, hessian: Hessian, cross: CrossMoment | None) -> None:
        assert cross is not None
        name = group.linears[0].name
        quantized = inputs_of(model, [sample], name)
        expected = cross_of(inputs_of(original, [sample], name), quantized, weights)
        torch.testing.assert_close(cross.values.double(), expected, rtol=1e-3, atol=1e-4)
        assert cross.weight == hessian.weight == 16 * 0.25 + 2.0 * (len(sample) - 16)
        seen.append(name)
        shrink(model, group)

    targets = linears(model, "decoder")
    run_sequential(
        model,
        [sample],
        targets,
        solve,
        token_weights=find_token_weights(FixedWeights(0.25, 2.0), model, []),
        asymmetric=[spec.name for spec in targets],
    )
    assert len(seen) == 8


def test_the_float_copy_includes_changes_before_the_statistics() -> None:
    """Inputs are compared channel by channel, so both paths must have the same scales."""
    model = small_model()
    samples = prompts(model.config)
    targets = linears(model, "decoder")
    largest: dict[str, float] = {}

    def prepare(view: CalibrationBlock) -> None:
        norm = model.get_parameter(f"{view.path}.input_layernorm.weight")
        norm.data.mul_(4)
        for part in ("q_proj", "k_proj", "v_proj"):
            model.get_parameter(f"{view.path}.self_attn.{part}.weight").data.div_(4)

    def solve(group: TapGroup, hessian: Hessian, cross: CrossMoment | None) -> None:
        assert cross is not None
        largest[group.linears[0].name] = float(cross.values.abs().max())

    names = [spec.name for spec in targets]
    run_sequential(model, samples, targets, solve, prepare=prepare, asymmetric=names)
    assert max(largest.values()) == 0  # nothing was quantized


def test_the_model_keeps_its_own_modules() -> None:
    model = small_model()
    before = {name: id(module) for name, module in model.named_modules()}

    def fail(group: TapGroup, hessian: Hessian, cross: CrossMoment | None) -> None:
        raise RuntimeError("stop")

    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("broken")

    targets = linears(model, "decoder")
    names = [spec.name for spec in targets]
    run_sequential(model, prompts(model.config), targets, lambda *_: None, asymmetric=names)
    with pytest.raises(RuntimeError, match="stop"):
        run_sequential(model, prompts(model.config), targets, fail, asymmetric=names)
    assert {name: id(module) for name, module in model.named_modules()} == before
    own = model.model.layers[0]
    own.input_layernorm = Failing()  # which the float copy runs first
    with pytest.raises(RuntimeError, match="broken"):
        run_sequential(model, prompts(model.config), targets, lambda *_: None, asymmetric=names)
    assert model.model.layers[0] is own
    assert all(not module._forward_pre_hooks for module in model.modules())
