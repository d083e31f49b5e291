from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vlpress.quant.kernels import library, op, reference
from vlpress.quant.methods.affine import QuantizedWeight
from vlpress.quant.methods.rtn import rtn
from vlpress.quant.recipe.scheme import QuantScheme
from vlpress.quant.runtime.linear import QuantLinear, storable_bias
from vlpress.quant.runtime.tiled_linear import FusedLinears, can_fuse
from vlpress.quant.runtime.unpacked_linear import UnpackedLinear


def make(bits: int, dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, QuantLinear]:
    torch.manual_seed(0)
    linear = nn.Linear(64, 24, dtype=dtype).requires_grad_(False)
    unpacked = UnpackedLinear(rtn(linear.weight, QuantScheme(bits, 32)), linear.bias)
    return linear, QuantLinear(unpacked.quantized(), unpacked.bias)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_prepack_round_trip(bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    integers = torch.randint(2**bits, (5, 16), generator=generator, dtype=torch.uint8)
    packed = reference.prepack(integers, bits)
    assert packed.shape == ((5, 8) if bits <= 4 else (5, 16))
    assert torch.equal(reference.unprepack(packed, bits), integers)


def test_prepack_refuses_odd_widths() -> None:
    with pytest.raises(ValueError, match="in_features 5 is odd"):
        reference.prepack(torch.zeros(2, 5, dtype=torch.uint8), 4)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64,), (1, 64), (2, 3, 64)])
def test_is_the_product_with_the_dequantized_weight(
    bits: int, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    linear, layer = make(bits, dtype)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight = layer.quantized().dequantize(dtype)
    assert torch.equal(layer(x), F.linear(x, weight, layer.bias))
    assert layer(x).dtype == dtype
    loss = (layer(x) - linear(x)).float().square().mean() / linear(x).float().square().mean()
    assert float(loss) < {3: 0.1, 4: 0.02, 8: 1e-3}[bits]


def test_quantized_gives_back_what_went_in() -> None:
    weight = rtn(torch.randn(8, 64, generator=torch.Generator().manual_seed(2)), QuantScheme(3, 32))
    assert QuantLinear(weight).quantized().equals(weight)


def test_group_index_is_gathered() -> None:
    plain = rtn(torch.randn(8, 64, generator=torch.Generator().manual_seed(3)), QuantScheme(4, 32))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(4))
    shuffled = QuantizedWeight(
        plain.integers[:, order],
        plain.scales,
        plain.zero_points,
        plain.scheme,
        plain.column_groups()[order],
    )
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(QuantLinear(shuffled)(x[:, order]), QuantLinear(plain)(x))


def test_state_dict_round_trip() -> None:
    _, layer = make(4)
    other = make(4)[1]
    assert other.packed is not None
    other.packed.zero_()
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(6))
    assert torch.equal(layer(x), other(x))


def prepared(layer: QuantLinear) -> QuantLinear:
    kernels = library.find_kernels("portable")
    if isinstance(kernels, str):
        pytest.skip(kernels)
    layer.prepare(kernels)
    return layer


def test_a_prepared_layer_keeps_one_form_and_gives_the_weight_back() -> None:
    _, layer = make(4)
    before, state = layer.quantized(), layer.state_dict()
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(7))
    expected = layer(x)
    prepared(layer)
    assert layer.packed is None and layer.scales is None and layer.zero_points is None
    assert layer.quantized().equals(before)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    after = layer.state_dict()
    assert state.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in state.items())


def test_a_prepared_layer_can_be_loaded_into_and_restored() -> None:
    _, layer = make(4)
    _, other = make(8)
    state = layer.state_dict()
    prepared(layer).load_state_dict(state)
    assert layer.tiles is None and layer.quantized().equals(make(4)[1].quantized())
    prepared(other).restore()
    assert other.quantized().equals(make(8)[1].quantized())
    other.restore()
    assert other.product is None


def test_a_prepared_layer_follows_the_type_around_it_and_leaves_its_device() -> None:
    _, layer = make(4)
    prepared(layer).to(torch.bfloat16)
    assert layer.tiles is not None and layer.bias is not None
    assert layer.bias.dtype == torch.bfloat16
    assert layer(torch.randn(2, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
    layer.to("meta")
    assert layer.tiles is None and layer.packed is not None and layer.packed.is_meta


@pytest.mark.parametrize("bits", [4, 8])
def test_a_layer_on_triton_kernels_keeps_its_weight(bits: int) -> None:
    pytest.importorskip("triton")
    _, layer = make(bits)
    before, state = layer.quantized(), layer.state_dict()
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(6))
    expected = layer(x)
    layer.select_kernel(None)
    assert layer.kernel == "triton" and layer.packed is None and layer.on_cpu
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    assert layer.quantized().equals(before)
    after = layer.state_dict()
    assert state.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in state.items())
    assert not can_fuse((layer, layer))
    layer.to(torch.bfloat16)  # away from a GPU, the reference computes the layer
    assert layer.kernel == "reference" and layer.quantized().equals(before)


def test_only_layers_alike_are_fused() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(8))
    four = [prepared(QuantLinear(rtn(weight[:n], QuantScheme(4, 32)))) for n in (64, 8)]
    assert can_fuse((four[0], four[1]))
    kernels = library.find_kernels("portable")
    assert not isinstance(kernels, str)
    fused = FusedLinears((four[0], four[1]), kernels)
    x = torch.randn(2, 64)
    for layer, out in zip(four, fused(x), strict=True):
        assert torch.equal(layer(x), out)
    others = [QuantScheme(8, 32), QuantScheme(4, 64), QuantScheme(4, 32, activations="dynamic")]
    for scheme in others:
        assert not can_fuse((four[0], prepared(QuantLinear(rtn(weight, scheme)))))
    assert not can_fuse((four[0], QuantLinear(rtn(weight, QuantScheme(4, 32)))))
    order = QuantLinear(rtn(weight, QuantScheme(4, 32)))
    order.group_index = (torch.randperm(64) % 2).int()
    assert not can_fuse((four[0], prepared(order)))
    assert can_fuse((order, order))


def test_bias_is_rounded_to_what_the_file_holds() -> None:
    bias = torch.tensor([1.0, 2.0**-30, 0.1])
    assert storable_bias(bias).tolist() == [1.0, 0.0, float(torch.tensor(0.1).half())]
    with pytest.raises(ValueError, match="does not fit fp16"):
        storable_bias(torch.tensor([1e6]))
    _, layer = make(4)
    assert layer.bias is not None
    assert torch.equal(layer.bias, layer.bias.half().float())


def make_static(scale: float = 0.03125) -> QuantLinear:
    weight = rtn(torch.randn(8, 64), QuantScheme(8, -1, activations="static"))
    return QuantLinear(replace(weight, input_scale=torch.tensor(scale)))


def test_activations_are_rounded_if_the_scheme_says_so() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(8, 64), torch.randn(5, 64)
    plain = QuantLinear(rtn(weight, QuantScheme(8, -1)))
    dynamic = QuantLinear(rtn(weight, QuantScheme(8, -1, activations="dynamic")))
    levels, scales = reference.quantize_activations(x)
    assert not torch.equal(dynamic(x), plain(x))
    torch.testing.assert_close(dynamic(x), plain(levels * scales))


def test_a_static_scale_is_kept_and_used() -> None:
    layer = make_static()
    assert layer.quantized().equals(layer.quantized())
    assert not layer.quantized().equals(make_static(0.0625).quantized())
    assert not layer.quantized().equals(replace(layer.quantized(), input_scale=None))
    assert "input_scale" in layer.state_dict()
    assert layer.input_scale is not None
    levels, scale = reference.quantize_activations(torch.randn(5, 64) * 9, layer.input_scale)
    assert int(levels.abs().max()) >= 127  # beyond the range: saturated
    x = levels * scale
    expected = F.linear(x, layer.quantized().dequantize())
    torch.testing.assert_close(layer(x * 1.001), expected, rtol=1e-4, atol=1e-4)


def test_a_static_scale_belongs_to_static_schemes() -> None:
    scheme = QuantScheme(8, -1, activations="static")
    with pytest.raises(ValueError, match=r"static .*no input scale"):
        QuantLinear(rtn(torch.randn(8, 64), scheme))
    weight = replace(rtn(torch.randn(8, 64), QuantScheme(8, -1)), input_scale=torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"int8 per row sym .*an input scale"):
        QuantLinear(weight)


def test_print_shows_the_scheme() -> None:
    assert "int4 g32 sym" in repr(make(4)[1])


@pytest.mark.gpu
def test_same_integers_on_the_accelerator() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no accelerator")
    _, layer = make(4)
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(6))
    expected = layer(x)
    moved = layer.to("cuda")
    assert torch.equal(moved.quantized().integers.to("cpu"), make(4)[1].quantized().integers)
    torch.testing.assert_close(moved(x.to("cuda")).to("cpu"), expected)


@pytest.mark.skipif(
    isinstance(library.find_kernels("portable"), str), reason="the kernels are not built"
)
def test_a_compiler_sees_products_as_operators() -> None:
    kernels = library.find_kernels("portable")
    assert not isinstance(kernels, str)
    weights = [torch.randn(64, 128, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    layers = tuple(QuantLinear(rtn(weight, QuantScheme(4, 64))) for weight in weights)
    for layer in layers:
        layer.prepare(kernels)
    joint = FusedLinears(layers, kernels)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(5))

    def run(x: torch.Tensor) -> torch.Tensor:
        left, right = joint(x)
        out: torch.Tensor = layers[0](x) + left * right
        return out

    with torch.no_grad():
        compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(x), run(x))
        exported = torch.export.export(layers[1], (x,))
    assert "vlpress.quantized_linear" in exported.graph_module.code
    assert torch.equal(exported.module()(x), layers[1](x))
    torch.library.opcheck(op.quantized_linear, (x, layers[0].number, [64], 0.0))
