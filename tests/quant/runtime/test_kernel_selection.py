"""Which kernels a loaded model's layers get."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlpress.model.loading import load_model
from vlpress.model.qwen_vl import QwenVL
from vlpress.model.text import DecoderLayer
from vlpress.quant.checkpoint.loading import open_model
from vlpress.quant.driver.pipeline import quantize_
from vlpress.quant.kernels import bf16_linear, library
from vlpress.quant.methods.rtn import rtn
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.runtime.description import count_kernels, describe_activations, describe_head
from vlpress.quant.runtime.kernel_selection import (
    accelerate_head_,
    accelerate_layers_,
    prepare_,
    round_head_,
    round_inputs_,
)
from vlpress.quant.runtime.linear import QuantLinear
from vlpress.quant.targets import quantized_layers

NEEDS = pytest.mark.skipif(
    isinstance(library.find_kernels("portable"), str), reason="the kernels are not built"
)


@pytest.fixture
def model() -> QwenVL:
    model = load_model("tiny", device="cpu", dtype="fp32")
    step = {"method": "rtn", "targets": ["model.layers.*"], "bits": 4, "group_size": 128}
    quantize_(model, Recipe.from_dict({"name": "test", "step": [step]}), [])
    return model


def logits(model: QwenVL) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    embeds = torch.randn(1, 7, model.config.text.hidden_size, generator=random).to(model.dtype)
    positions = torch.arange(7).expand(3, 1, 7)
    with torch.inference_mode():
        hidden: torch.Tensor = model.model(embeds, positions)
    return hidden


@NEEDS
@pytest.mark.parametrize("name", library.NAMES)
def test_every_layer_gets_the_chosen_kernels(
    model: QwenVL, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(library.find_kernels(name), str):
        pytest.skip(f"no {name} here")
    monkeypatch.setenv(library.VARIABLE, name)
    expected = logits(model)
    chosen = prepare_(model)
    assert chosen.keys() == quantized_layers(model).keys()
    assert set(chosen.values()) == {name}
    torch.testing.assert_close(logits(model), expected, rtol=1e-3, atol=1e-3)


@NEEDS
def test_q_k_v_and_gate_up_run_in_one_call(model: QwenVL) -> None:
    expected = logits(model)
    prepare_(model)
    layer: Any = model.model.layers[0]
    joint = layer.full_attention.q_proj.fused, layer.mlp.gate_proj.fused
    assert [len(group.layers) for group in joint if group is not None] == [3, 2]
    calls = []
    layer.full_attention.k_proj.register_forward_hook(lambda *_: calls.append("k"))
    torch.testing.assert_close(logits(model), expected, rtol=1e-3, atol=1e-3)
    assert calls == []
    # Another layer replaces a member: the fused product is no longer valid.
    layer.full_attention.q_proj.fused.layers = (layer.full_attention.q_proj,)
    logits(model)
    assert calls == ["k"]


@NEEDS
@pytest.mark.parametrize(
    ("scheme", "kernel"),
    [
        ({"grid": "nvfp4"}, "portable"),
        ({"grid": "fp8", "activations": "dynamic"}, "simulated fp8 activations, portable"),
    ],
)
def test_layers_over_tables_get_the_kernels(
    scheme: dict[str, str], kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(library.VARIABLE, "portable")
    model = load_model("tiny", device="cpu", dtype="bf16")
    step = {"method": "rtn", "targets": ["model.layers.*"], **scheme}
    quantize_(model, Recipe.from_dict({"name": "test", "step": [step]}), [])
    expected = logits(model.bfloat16())
    chosen = prepare_(model)
    assert set(chosen.values()) == {kernel} and count_kernels(model)[kernel] == len(chosen)
    layers: Any = model.model.layers
    fused = "activations" not in scheme
    assert (layers[0].full_attention.q_proj.fused is not None) == fused
    assert (layers[0].fused_layer is not None) == fused
    actual = logits(model)
    assert float((actual.float() - expected.float()).norm() / expected.float().norm()) < 0.02


def test_the_reference_is_never_taken_silently(
    model: QwenVL, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(library.VARIABLE, "reference")
    with caplog.at_level(logging.WARNING):
        chosen = prepare_(model)
    assert set(chosen.values()) == {"reference: VLPRESS_KERNEL is reference"}
    count = len(chosen)
    assert f"{count} of {count} quantized layers: reference: VLPRESS_KERNEL is ref" in caplog.text
    assert all(layer.tiles is None for layer in quantized_layers(model).values())


@NEEDS
def test_a_layer_that_does_not_fit_is_named(
    model: QwenVL, caplog: pytest.LogCaptureFixture
) -> None:
    name, layer = next(iter(quantized_layers(model).items()))
    index = torch.zeros(layer.in_features, dtype=torch.int32)
    index[0] = 1
    layer.group_index = index
    with caplog.at_level(logging.WARNING):
        chosen = prepare_(model)
    reason = "reference: the groups of its group index are of unequal size"
    assert chosen[name] == reason
    assert f"1 of {len(chosen)} quantized layers: {reason}" in caplog.text


def test_a_float_model_has_nothing_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, "nonsense")
    assert prepare_(load_model("tiny", device="cpu", dtype="fp32")) == {}


def test_inputs_are_rounded_only_if_asked_for(model: QwenVL) -> None:
    plain = logits(model)
    assert describe_activations(model) is None
    round_inputs_(model)
    rounded = logits(model)
    assert describe_activations(model) == "int8"
    assert not torch.allclose(rounded, plain, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(rounded, plain, rtol=0.2, atol=0.5)
    prepare_(model)
    torch.testing.assert_close(logits(model), rounded, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("head", "bits", "close"), [("w8a16", 8, 0.1), ("w4a16", 4, 1.0)])
def test_a_tied_head_is_rounded_in_memory(head: Any, bits: int, close: float) -> None:
    plain = open_model("tiny", device="cpu", dtype="fp32")
    rounded = open_model("tiny", device="cpu", dtype="fp32", head=head)
    assert isinstance(rounded.lm_head, QuantLinear) and rounded.lm_head.scheme.bits == bits
    assert describe_head(plain) is None and describe_head(rounded) == f"int{bits} g128 sym"
    embeddings = plain.model.embed_tokens.weight
    assert torch.equal(embeddings, rounded.model.embed_tokens.weight)
    hidden = torch.randn(3, embeddings.shape[1], generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, actual = plain.logits(hidden), rounded.logits(hidden)
    assert 0 < float((actual - expected).abs().max()) < close * float(expected.abs().max())
    whole = rtn(embeddings.detach(), rounded.lm_head.scheme)
    assert rounded.lm_head.quantized().equals(whole)
    with pytest.raises(ValueError, match=r"^head: .*quantized already"):
        round_head_(rounded, 8)


def test_a_float_model_has_no_inputs_to_round() -> None:
    with pytest.raises(ValueError, match=r"activations int8: .*no quantized"):
        open_model("tiny", device="cpu", activations="int8")


@NEEDS
def test_one_thread_is_said(
    model: QwenVL, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(library, "has_threads", lambda: False)
    with caplog.at_level(logging.WARNING):
        prepare_(model)
    assert "the CPU kernels run on one thread" in caplog.text


@NEEDS
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_in_bf16_is_read_by_the_kernels(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, "reference")
    plain = open_model("tiny", device="cpu", dtype="bf16")
    assert count_kernels(plain) == {}
    monkeypatch.setenv(library.VARIABLE, "portable")
    fast = load_model("tiny", device="cpu", dtype="bf16")
    if not tied:
        weight = fast.model.embed_tokens.weight
        fast.lm_head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        fast.lm_head.weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
    names = set(fast.state_dict())
    accelerate_head_(fast)
    assert count_kernels(fast) == {"portable": 1}
    assert set(fast.state_dict()) == names
    random = torch.Generator().manual_seed(2)
    for rows in (1, bf16_linear.GEMV_ROWS, bf16_linear.GEMV_ROWS + 1):
        hidden = torch.randn(rows, plain.config.text.hidden_size, generator=random).bfloat16()
        with torch.inference_mode():
            expected, actual = plain.logits(hidden), fast.logits(hidden)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected, rtol=2**-7, atol=1e-3)
    many = torch.randn(64, plain.config.text.hidden_size, generator=random).bfloat16()
    assert torch.equal(plain.logits(many), fast.logits(many))
    few = many[:2].requires_grad_()
    assert torch.autograd.grad(fast.logits(few).sum(), few)[0].shape == few.shape


@NEEDS
@pytest.mark.parametrize("name", library.NAMES)
def test_layers_in_bf16_run_on_kernels_without_bf16_units(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(library.find_kernels(name), str):
        pytest.skip(f"{library.find_kernels(name)}")
    plain = load_model("tiny", device="cpu", dtype="bf16")
    fast = load_model("tiny", device="cpu", dtype="bf16")
    layers = [path for path, module in plain.named_modules() if isinstance(module, nn.Linear)]
    names = set(fast.state_dict())
    monkeypatch.setenv(library.VARIABLE, name)
    accelerate_layers_(fast, torch.device("cuda"))
    assert count_kernels(fast) == {}
    accelerate_layers_(fast, fast.device)
    pays = name in bf16_linear.WITHOUT_BF16_UNITS
    assert count_kernels(fast) == ({name: len(layers)} if pays else {})
    assert set(fast.state_dict()) == names
    tokens = torch.arange(40, 80)[None]
    with torch.inference_mode():
        expected, actual = (feed_forward(model, tokens) for model in (plain, fast))
    torch.testing.assert_close(actual, expected, rtol=2**-6, atol=1e-3)


def feed_forward(model: QwenVL, tokens: Tensor) -> Tensor:
    layer = model.model.layers[0]
    assert isinstance(layer, DecoderLayer)
    output = layer.mlp(model.model.embed_tokens(tokens))
    assert isinstance(output, Tensor)
    return output


@NEEDS
def test_a_head_in_float32_stays_with_torch() -> None:
    assert count_kernels(open_model("tiny", device="cpu", dtype="fp32")) == {}
