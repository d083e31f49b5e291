"""Fused decoder layers, compared with the same layers module by module."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_models import make_random_model
from torch import Tensor

from vlpress.model.cache import KVCache, causal_mask
from vlpress.model.kv_quant.fp8 import round_fp8
from vlpress.model.kv_quant.types import CacheType
from vlpress.model.loading import load_model
from vlpress.model.qwen_vl import QwenVL
from vlpress.model.rope import rotate
from vlpress.model.text import DecoderLayer
from vlpress.quant.driver.pipeline import quantize_
from vlpress.quant.kernels import library
from vlpress.quant.kernels.decoder_layer import CpuDecoderLayer
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.runtime.fused_layer import FusedDecoderLayer
from vlpress.quant.runtime.kernel_selection import prepare_, round_inputs_
from vlpress.quant.targets import quantized_layers

AVAILABLE = [name for name in library.NAMES if not isinstance(library.find_kernels(name), str)]
if not AVAILABLE:
    pytest.skip(f"{library.find_kernels()}", allow_module_level=True)
PAST = 21


def quantized(
    bits: int = 4, group: int = 128, model: QwenVL | None = None, **more: object
) -> QwenVL:
    model = model or load_model("tiny", device="cpu", dtype="bf16")
    step = {"method": "rtn", "targets": ["model.layers.*"], "bits": bits, "group_size": group}
    quantize_(model, Recipe.from_dict({"name": "test", "step": [step | more]}), [])
    return model


@pytest.fixture(scope="module")
def model() -> QwenVL:
    return quantized()


@pytest.fixture(scope="module")
def exact_model() -> QwenVL:
    return quantized().float()


@pytest.fixture(scope="module")
def normed_model() -> QwenVL:
    """Qwen3-VL: q and k have norms but no biases, and heads x head_dim is not hidden_size."""
    return quantized(model=make_random_model("qwen3_vl", dtype=torch.bfloat16))


@pytest.fixture(scope="module")
def exact_normed_model() -> QwenVL:
    return quantized(model=make_random_model("qwen3_vl", dtype=torch.bfloat16)).float()


def fast_layer(model: QwenVL, index: int = 1) -> DecoderLayer:
    layer = model.model.layers[index]
    assert isinstance(layer, DecoderLayer) and isinstance(layer.fused_layer, FusedDecoderLayer)
    return layer


def inputs(model: QwenVL, rows: int, tokens: int, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    embeds = torch.randn(rows, tokens, model.config.text.hidden_size, generator=random).bfloat16()
    positions = torch.arange(PAST, PAST + tokens).expand(3, rows, tokens)
    state: dict[str, Tensor] = model.model.prepare(embeds, positions)
    return state


def cache_of(
    model: QwenVL, rows: int, dtype: torch.dtype = torch.bfloat16, kind: CacheType = "model"
) -> KVCache:
    config, random = model.config.text, torch.Generator().manual_seed(7)
    cache = KVCache(config, rows, PAST + 40, kind)
    shape = rows, config.num_key_value_heads, PAST, config.head_dim
    for index in range(config.num_hidden_layers):
        keys, values = (torch.randn(shape, generator=random).bfloat16() for _ in range(2))
        cache.update(index, keys.to(dtype), values.to(dtype))
    cache.advance(PAST)
    return cache


@torch.inference_mode()
def run(
    layer: DecoderLayer,
    state: dict[str, Tensor],
    cache: KVCache | None,
    mask: Tensor | None = None,
    *,
    fast: bool,
) -> Tensor:
    """As one, or module by module."""
    faster = layer.fused_layer
    if fast:
        assert faster is not None and faster.supports(state["hidden"])
    layer.fused_layer = faster if fast else None
    out: Tensor = layer(state["hidden"], state["cos"], state["sin"], mask, cache)
    layer.fused_layer = faster
    return out.float()


@torch.inference_mode()
def test_features_are_added_to_the_output_of_a_fused_layer(model: QwenVL) -> None:
    prepare_(model)
    state = inputs(model, 2, 9)
    layer = fast_layer(model).fused_layer
    assert layer is not None and layer.supports(state["hidden"])
    features = torch.randn(5, state["hidden"].shape[-1]).bfloat16()
    rows = torch.tensor([2, 3, 4, 11, 12])
    expected = model.model.step(1, state)["hidden"].clone()
    expected.view(18, -1)[rows] += features
    added = {"deepstack.1": features, "visual_rows": rows, "deepstack.2": features}
    after = model.model.step(1, state | added)
    assert torch.equal(after["hidden"], expected)
    assert after.keys() - state.keys() == {"visual_rows", "deepstack.2"}


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize(
    ("rows", "tokens", "cached"),
    [(1, 1, True), (5, 1, True), (2, 9, True), (2, 9, False), (1, 600, False)],
)
@pytest.mark.parametrize(
    ("masked", "rounds"),
    [
        (False, False),
        (True, False),
        (False, True),
        pytest.param(True, True, marks=pytest.mark.slow),
    ],
)
def test_a_layer_gives_what_its_modules_give(
    model: QwenVL,
    exact_model: QwenVL,
    name: str,
    rows: int,
    tokens: int,
    cached: bool,
    masked: bool,
    rounds: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(library.VARIABLE, name)
    compare_with_modules(model, exact_model, rows, tokens, cached, masked, rounds)


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize(
    ("rows", "tokens", "cached", "masked", "rounds"),
    [
        (1, 1, True, False, False),
        (5, 1, True, True, False),
        (2, 9, True, False, True),
        pytest.param(2, 600, False, True, False, marks=pytest.mark.slow),
    ],
)
def test_a_layer_with_norms_of_heads_gives_what_its_modules_give(
    normed_model: QwenVL,
    exact_normed_model: QwenVL,
    name: str,
    rows: int,
    tokens: int,
    cached: bool,
    masked: bool,
    rounds: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(library.VARIABLE, name)
    compare_with_modules(normed_model, exact_normed_model, rows, tokens, cached, masked, rounds)


def compare_with_modules(
    model: QwenVL,
    exact_model: QwenVL,
    rows: int,
    tokens: int,
    cached: bool,
    masked: bool,
    rounds: bool,
) -> None:
    """Compare the errors of a fused layer and of its modules, both against float32."""
    prepare_(model)
    for part in (*quantized_layers(model).values(), *quantized_layers(exact_model).values()):
        part.rounds_inputs = rounds
    layer, state = fast_layer(model), inputs(model, rows, tokens)
    mask = None
    total = (PAST if cached else 0) + tokens
    if masked or (cached and tokens > 1):
        columns = torch.arange(total)
        mask = (columns[total - tokens :, None] >= columns)[None, None].repeat(rows, 1, 1, 1)
        if masked and cached:
            mask[:, :, :, :3] = False  # padding on the left, and a hole
            mask[-1, :, :, 10] = False
    exact_layer = exact_model.model.layers[1]
    assert isinstance(exact_layer, DecoderLayer)
    fast, plain = (cache_of(model, rows) if cached else None for _ in range(2))
    wide = {key: value.float() for key, value in state.items() if key != "mask"}
    exact_cache = cache_of(model, rows, torch.float32) if cached else None
    outputs = {
        "exact": run(exact_layer, wide, exact_cache, mask, fast=False),
        "plain": run(layer, state, plain, mask, fast=False),
        "fast": run(layer, state, fast, mask, fast=True),
    }
    change = outputs["exact"] - state["hidden"].float()  # what the layer adds
    error = {how: float((outputs[how] - outputs["exact"]).norm()) for how in ("plain", "fast")}
    assert error["fast"] <= 1.05 * error["plain"] + 1e-3 * float(change.norm())
    if rounds:  # levels flip where bf16 and float32 differ a little
        assert error["fast"] < 0.05 * float(change.norm())
    if fast is not None and plain is not None:
        like = state["hidden"]
        for fused, plain_part in zip(
            fast.buffers(1, 0, like)[:2], plain.buffers(1, 0, like)[:2], strict=True
        ):
            torch.testing.assert_close(fused, plain_part, rtol=2**-6, atol=0.02)
            assert torch.equal(fused[:, :, :PAST], plain_part[:, :, :PAST])
            assert bool((fused[:, :, PAST + tokens :] == 0).all())


@pytest.mark.parametrize("name", AVAILABLE)
@torch.inference_mode()
def test_heads_are_normed_and_rotated(
    normed_model: QwenVL, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Apart from the product, which both have, norms and rotation are those of torch."""
    monkeypatch.setenv(library.VARIABLE, name)
    prepare_(normed_model)
    layer, state = fast_layer(normed_model), inputs(normed_model, 2, 7)
    fused, attention = layer.fused_layer, layer.full_attention
    assert isinstance(fused, FusedDecoderLayer)
    hidden, cos, sin, scales = state["hidden"], state["cos"], state["sin"], [None] * 4
    q, k, v = fused.block.pre_attention(hidden, cos, sin, scales)
    products = [product for product in fused.products if product is not None]
    norms = [norm.weight for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    eps, kernels = layer.input_layernorm.eps, fused.block.kernels
    plain = CpuDecoderLayer(fused.block.sizes, norms, eps, products, kernels)
    ones, zeros = torch.ones_like(cos), torch.zeros_like(sin)  # no rotation
    raw_q, raw_k, raw_v = plain.pre_attention(hidden, ones, zeros, scales)
    assert torch.equal(v, raw_v)
    assert attention.q_norm is not None and attention.k_norm is not None
    for actual, raw, norm in ((q, raw_q, attention.q_norm), (k, raw_k, attention.k_norm)):
        wide = F.rms_norm(raw.float(), raw.shape[-1:], norm.weight.float(), norm.eps)
        normed = wide.bfloat16().float()  # rounded before the rotation, as by the modules
        exact = rotate(normed, cos[:, :, None].float(), sin[:, :, None].float())
        # Half a unit in the last place of the result, and one of each of two norms, which may be
        # rounded the other way because the sum of squares has another order.
        bound = exact.abs() * 2**-8 + normed.abs().amax(-1, keepdim=True) * 2**-6
        assert bool(((actual.float() - exact).abs() <= bound).all())
        assert float((actual.float() - exact).norm() / exact.norm()) < 2**-9


def test_norms_with_other_epsilons_are_not_fused() -> None:
    model = quantized(model=make_random_model("qwen3_vl", dtype=torch.bfloat16))
    layer = model.model.layers[1]
    assert isinstance(layer, DecoderLayer) and layer.full_attention.q_norm is not None
    layer.full_attention.q_norm.eps = 1e-5
    prepare_(model)
    assert [layer.fused_layer is None for layer in model.model.layers] == [
        False,
        True,
        False,
        False,
    ]


def test_a_layer_whose_head_norm_has_changed_is_not_taken(normed_model: QwenVL) -> None:
    prepare_(normed_model)
    layer = fast_layer(normed_model)
    hidden, faster = inputs(normed_model, 1, 1)["hidden"], layer.fused_layer
    assert faster is not None and faster.supports(hidden)
    assert layer.full_attention.k_norm is not None
    before = layer.full_attention.k_norm.weight
    layer.full_attention.k_norm.weight = torch.nn.Parameter(before.detach().clone())
    assert not faster.supports(hidden)
    layer.full_attention.k_norm.weight = before
    assert faster.supports(hidden)


@pytest.mark.parametrize("name", AVAILABLE)
def test_the_number_of_threads_changes_nothing(
    model: QwenVL, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(library.VARIABLE, name)
    prepare_(model)
    layer, state = fast_layer(model), inputs(model, 3, 1)
    before, outputs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outputs.append(run(layer, state, cache_of(model, 3), fast=True))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("name", AVAILABLE)
def test_an_int8_cache_is_read_and_written_as_it_is_stored(
    model: QwenVL, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(library.VARIABLE, name)
    prepare_(model)
    for part in quantized_layers(model).values():
        part.rounds_inputs = False
    layer, state = fast_layer(model), inputs(model, 3, 1)
    like, outputs, stored = state["hidden"], [], []
    mask = torch.ones(3, 1, 1, PAST + 1, dtype=torch.bool)
    mask[1, :, :, :4] = False
    for fast in (False, True):
        cache = cache_of(model, 3, kind="int8")
        outputs.append(run(layer, state, cache, mask, fast=fast))
        stored.append(cache.buffers(1, 1, like))
    change = (outputs[0] - like.float()).norm()
    assert float((outputs[0] - outputs[1]).norm()) < 0.02 * float(change)
    plain, fused = stored
    for buffer in (0, 1):
        levels = fused[buffer], plain[buffer]
        scales = fused[buffer + 2], plain[buffer + 2]
        assert levels[0] is not None and levels[1] is not None
        assert scales[0] is not None and scales[1] is not None
        assert levels[0].dtype == torch.int8
        # bf16 keys may differ in their last bit, and so may what they are rounded to.
        assert int((levels[0].int() - levels[1].int()).abs().max()) <= 2
        torch.testing.assert_close(scales[0], scales[1], rtol=2**-7, atol=0)
        assert torch.equal(levels[0][:, :, :PAST], levels[1][:, :, :PAST])


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("kind", ["int4", "fp8"])
def test_a_simulated_cache_is_rounded_in_fused_layers_too(
    model: QwenVL, name: str, tokens: int, kind: CacheType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(library.VARIABLE, name)
    prepare_(model)
    for part in quantized_layers(model).values():
        part.rounds_inputs = False
    layer, state = fast_layer(model), inputs(model, 3, tokens)
    mask = causal_mask(tokens, PAST + tokens, torch.device("cpu")) if tokens > 1 else None
    outputs, stored = [], []
    for fast, of_run in [(False, kind), (True, kind), (True, "model")]:
        cache = cache_of(model, 3, kind=of_run)
        outputs.append(run(layer, state, cache, mask, fast=fast).float())
        new = cache.buffers(1, tokens, state["hidden"])
        stored.append([part[:, :, PAST : PAST + tokens].float() for part in new[:2]])
    change = (outputs[0] - outputs[2]).norm()
    # bf16 keys may differ in their last bit, and so may the level that they are rounded to.
    assert float((outputs[0] - outputs[1]).norm()) < 0.5 * float(change)
    for plain, fused, unrounded in zip(*stored, strict=True):
        step = float((plain - unrounded).norm())
        assert step > 0 and float((fused - plain).norm()) < 0.5 * step
        if kind == "fp8":
            assert torch.equal(fused, round_fp8(fused, 1.0))


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("kind", ["model", "int8"])
def test_what_is_not_a_number_stays_in_its_row(
    model: QwenVL, name: str, kind: CacheType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(library.VARIABLE, name)
    prepare_(model)
    layer, state = fast_layer(model), inputs(model, 3, 1)
    clean = run(layer, state, cache_of(model, 3, kind=kind), fast=True)
    state["hidden"][1, 0, 5] = torch.nan
    cache = cache_of(model, 3, kind=kind)
    outputs = run(layer, state, cache, fast=True)
    scales = cache.buffers(1, 1, state["hidden"]).key_scales
    assert scales is None or bool(scales[1, :, PAST].isnan().all())
    assert bool(outputs[1].isnan().all())
    assert torch.equal(outputs[[0, 2]], clean[[0, 2]])


def test_a_mask_of_one_row_holds_for_all(model: QwenVL) -> None:
    prepare_(model)
    layer, state = fast_layer(model), inputs(model, 3, 1)
    mask = torch.ones(1, 1, 1, PAST + 1, dtype=torch.bool)
    mask[..., :5] = False
    one = run(layer, state, cache_of(model, 3), mask, fast=True)
    all_rows = run(layer, state, cache_of(model, 3), mask.repeat(3, 1, 1, 1), fast=True)
    assert torch.equal(one, all_rows)


def test_other_types_go_through_the_modules(model: QwenVL) -> None:
    prepare_(model)
    faster = fast_layer(model).fused_layer
    assert faster is not None
    hidden = inputs(model, 1, 1)["hidden"]
    assert faster.supports(hidden)
    assert not faster.supports(hidden.float())
    assert not faster.supports(hidden.clone().requires_grad_())
    with torch.no_grad():
        assert faster.supports(hidden.clone().requires_grad_())


def test_a_layer_that_has_changed_is_not_taken() -> None:
    model = quantized()
    prepare_(model)
    layer = fast_layer(model)
    hidden, faster = inputs(model, 1, 1)["hidden"], layer.fused_layer
    assert faster is not None and faster.supports(hidden)
    next(iter(quantized_layers(layer).values())).restore()
    assert not faster.supports(hidden)
    prepare_(model)
    again = fast_layer(model).fused_layer
    assert again is not None and again.supports(hidden)
    layer.input_layernorm.weight = torch.nn.Parameter(layer.input_layernorm.weight.detach().clone())
    assert not again.supports(hidden)


def test_layers_that_are_not_quantized_throughout_stay_as_they_are() -> None:
    model = load_model("tiny", device="cpu", dtype="bf16")
    only = {"method": "rtn", "targets": ["model.layers.*.mlp.*_proj"], "bits": 4, "group_size": 128}
    quantize_(model, Recipe.from_dict({"name": "test", "step": [only]}), [])
    prepare_(model)
    assert all(layer.fused_layer is None for layer in model.model.layers)
    other = quantized().float()
    prepare_(other)
    assert all(layer.fused_layer is None for layer in other.model.layers)


def test_inputs_rounded_later_are_rounded() -> None:
    model = quantized()
    prepare_(model)
    layer, state = fast_layer(model), inputs(model, 2, 1)
    plain = run(layer, state, cache_of(model, 2), fast=True)
    round_inputs_(model)
    rounded = run(layer, state, cache_of(model, 2), fast=True)
    assert not torch.equal(plain, rounded)
    torch.testing.assert_close(rounded, plain, rtol=0.1, atol=0.3)
