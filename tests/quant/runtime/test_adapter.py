"""Layers with an adapter: the same sum by every class and by fused calls."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from format_files import made_layer, made_table_layer
from torch import Tensor

from vlpress.model.loading import load_model
from vlpress.model.qwen_vl import QwenVL
from vlpress.model.text import DecoderLayer
from vlpress.quant.compressed_weight import CompressedWeight
from vlpress.quant.driver.pipeline import quantize_
from vlpress.quant.kernels import library
from vlpress.quant.methods.low_rank import LowRank
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.scheme import QuantScheme, TableScheme
from vlpress.quant.runtime.adapter import LowRankAdapter
from vlpress.quant.runtime.compressed_linear import CompressedLinear, DequantizedLinear
from vlpress.quant.runtime.kernel_selection import prepare_
from vlpress.quant.targets import compressed_linears


def part(rows: int, columns: int, rank: int = 3) -> LowRank:
    generator = torch.Generator().manual_seed(1)
    down = torch.randn(rank, columns, generator=generator)
    return LowRank(down, torch.randn(rows, rank, generator=generator))


WEIGHTS: dict[str, Callable[[], CompressedWeight]] = {
    "int4": lambda: made_layer(QuantScheme(4, 32)),
    "int8 inputs": lambda: made_layer(QuantScheme(8, -1, activations="dynamic")),
    "fp8": lambda: made_table_layer(TableScheme("fp8")),
    "nvfp4 inputs": lambda: made_table_layer(TableScheme("nvfp4", activations="dynamic")),
}


@pytest.mark.usefixtures("reference_kernel")
@pytest.mark.parametrize("kind", list(WEIGHTS))
def test_every_layer_adds_it_to_inputs_that_are_not_rounded(kind: str) -> None:
    weight = WEIGHTS[kind]()
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(0))
    adapter = LowRankAdapter(part(64, 96))
    layers: list[CompressedLinear] = [
        weight.calibration_layer(None, torch.float32),
        weight.inference_layer(None),
    ]
    if weight.scheme.activations == "none":
        layers.append(DequantizedLinear(weight))
    for layer in layers:
        plain = layer(x)
        layer.adapter = adapter
        expected = plain + x @ adapter.low_rank().matrix().t()
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-4)
        packed = layer.for_inference()
        assert isinstance(packed, CompressedLinear) and packed.adapter is adapter
        assert {"adapter.down", "adapter.up"} <= set(layer.state_dict())


def test_it_trains_and_follows_the_layer() -> None:
    layer = made_layer(QuantScheme(4, 32)).inference_layer(None)
    layer.adapter = LowRankAdapter(part(64, 96).to(torch.bfloat16))
    assert layer.to(torch.float16).adapter.up.dtype == torch.float16  # type: ignore[union-attr]
    layer = layer.float()
    adapter = layer.adapter
    assert adapter is not None and not list(layer.parameters())
    adapter.down.requires_grad_()
    adapter.up.requires_grad_()
    x = torch.randn(5, 96)
    torch.autograd.backward(layer(x).sum())
    assert adapter.up.grad is not None and adapter.down.grad is not None
    torch.testing.assert_close(adapter.up.grad, F.linear(x, adapter.down).sum(0).expand(64, 3))
    assert not adapter.low_rank().down.requires_grad


def hidden_of(model: QwenVL) -> Tensor:
    embeds = torch.randn(
        1, 7, model.config.text.hidden_size, generator=torch.Generator()
    ).bfloat16()
    with torch.inference_mode():
        hidden: Tensor = model.model(embeds, torch.arange(7).expand(3, 1, 7))
    return hidden


@pytest.mark.skipif(isinstance(library.find_kernels(), str), reason="the kernels are not built")
def test_fused_layers_add_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model("tiny", device="cpu", dtype="bf16")
    step = {"method": "rtn", "targets": ["model.layers.*"], "bits": 4, "group_size": 128}
    quantize_(model, Recipe.from_dict({"name": "test", "step": [step | {"adapter_rank": 8}]}), [])
    prepare_(model)
    layer = model.model.layers[0]
    assert isinstance(layer, DecoderLayer) and layer.self_attn is not None
    assert layer.fused_layer is None  # its kernel knows no adapters
    query = layer.self_attn.q_proj
    assert query.fused is not None and query.adapter is not None
    fused = hidden_of(model)
    for each in compressed_linears(model).values():
        each.fused = None  # type: ignore[assignment]
    assert torch.equal(hidden_of(model), fused)
    for each in compressed_linears(model).values():
        each.adapter = None
    assert not torch.equal(hidden_of(model), fused)
    prepare_(model)
    whole = layer.fused_layer
    assert whole is not None and whole.supports(fused)
    query.adapter = LowRankAdapter(part(query.out_features, query.in_features))
    assert not whole.supports(fused)  # changed since
