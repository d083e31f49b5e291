"""A layer in every format: it round-trips exactly, and its bytes do not change."""

import json
from typing import Any, get_args

import paths
import pytest
import torch
from format_files import contents, fingerprint, made_layer, made_table_layer
from hypothesis import assume, given
from hypothesis import strategies as st

from vlpress.model.families import LinearSpec
from vlpress.quant.checkpoint.formats.contents import Contents
from vlpress.quant.checkpoint.formats.table import FORMATS, choose_format, find_format, format_of
from vlpress.quant.checkpoint.safetensors_folder.folder_format import FolderFormat
from vlpress.quant.compressed_weight import CompressedWeight
from vlpress.quant.methods.affine import QuantizedWeight, round_scales
from vlpress.quant.recipe.scheme import Activations, QuantScheme, TableScheme

GOLDEN = paths.GOLDEN / "format_layers.json"
LAYER = "model.layers.0.mlp.down_proj"


def golden_schemes() -> dict[str, list[QuantScheme]]:
    symmetric = [QuantScheme(bits, 32) for bits in (2, 3, 4, 8)]
    asymmetric = [QuantScheme(bits, 32, symmetric=False) for bits in (2, 3, 4, 8)]
    activations = [
        QuantScheme(8, -1, activations="dynamic"),
        QuantScheme(8, -1, activations="static"),
        QuantScheme(4, 32, activations="dynamic"),
    ]
    odd = [QuantScheme(bits, 32, symmetric=False) for bits in (5, 6, 7)]
    return {
        "gptq": [*symmetric, QuantScheme(4, -1)],
        "gptq_v2": [*symmetric, *asymmetric],
        "compressed-tensors": [*symmetric, *asymmetric, *odd, QuantScheme(8, -1), *activations],
        "awq": [QuantScheme(4, 32), QuantScheme(4, 32, symmetric=False), QuantScheme(4, -1)],
    }


def golden_tables() -> dict[str, list[TableScheme]]:
    blocks = TableScheme("fp8", 32, 32, "dynamic")
    static, dynamic = (TableScheme("fp8", activations=form) for form in ("static", "dynamic"))
    fours = [
        TableScheme(grid, activations=activations)
        for grid in ("nvfp4", "mxfp4")
        for activations in ("none", "dynamic")
    ]
    return {
        "compressed-tensors": [TableScheme("fp8"), static, dynamic, blocks, *fours],
        "fp8": [blocks],
    }


def golden_bytes() -> dict[str, Any]:
    """Return the content of `tests/golden/format_layers.json`, which was written once from this."""
    golden: dict[str, Any] = {}
    made: tuple[tuple[str, CompressedWeight], ...] = (
        *((name, made_layer(s)) for name, of in golden_schemes().items() for s in of),
        *((name, made_table_layer(s)) for name, of in golden_tables().items() for s in of),
    )
    for name, layer in made:
        encoded = FORMATS[name].encode(layer, torch.bfloat16)
        parts = {part: fingerprint(tensor) for part, tensor in encoded.items()}
        golden.setdefault(name, {})[layer.scheme.label] = parts
    return golden


def test_bytes_are_those_of_the_golden_file() -> None:
    assert golden_bytes() == json.loads(GOLDEN.read_text())


@st.composite
def layers(draw: st.DrawFn) -> QuantizedWeight:
    activations: Activations = draw(st.sampled_from(get_args(Activations)))
    symmetric = activations != "none" or draw(st.booleans())
    group_size = draw(st.sampled_from([32, 64, -1]))
    scheme = QuantScheme(draw(st.integers(2, 8)), group_size, symmetric, activations)
    rows, columns = draw(st.sampled_from([(32, 64), (64, 128), (96, 64)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    size = (rows, scheme.groups(columns))
    zero_points = torch.randint(scheme.max_level + 1, size, generator=generator)
    if symmetric:
        zero_points.fill_(scheme.midpoint)
    exponents = torch.randint(-14, 12, size, generator=generator)
    index = None
    if activations == "none" and draw(st.booleans()):
        order = torch.randperm(columns, generator=generator)
        index = (order // scheme.width(columns)).int()
    return QuantizedWeight(
        torch.randint(scheme.max_level + 1, (rows, columns), generator=generator).to(torch.uint8),
        round_scales(torch.rand(size, generator=generator) * 2.0**exponents + 2.0**-24),
        zero_points.to(torch.uint8),
        scheme,
        index if scheme.groups(columns) > 1 else None,
        torch.tensor(0.375) if activations == "static" else None,
    )


@pytest.mark.parametrize("name", FORMATS)
@given(weight=layers(), dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
def test_layers_round_trip(name: str, weight: QuantizedWeight, dtype: torch.dtype) -> None:
    """Layers that a format can hold round-trip; it refuses numbers that it cannot represent."""
    format = FORMATS[name]
    reordered = {LAYER} if weight.group_index is not None else set()
    config = contents({}, intermediate_size=weight.in_features).config
    held = Contents(config, {LAYER: weight.scheme}, reordered)
    if format.why_not(held):
        return
    assume(name != "gptq" or int(weight.zero_points.min()) > 0)
    tensors = format.encode(weight, dtype)
    decoded = format.decode(tensors, weight.scheme, LAYER)
    assert decoded.equals(weight)
    assert isinstance(format, FolderFormat)
    assert set(tensors) <= set(format.parts) and format.marker in tensors
    again = format.encode(decoded, dtype)
    assert all(torch.equal(again[part], tensor) for part, tensor in tensors.items())
    sizes = weight.in_features, weight.out_features
    spec = LinearSpec(LAYER, *sizes, False, "decoder", "decoder", 0, "down")
    stored = sum(tensor.nbytes for tensor in tensors.values())
    assert stored == format.stored_bytes(spec, weight.scheme, dtype)


def test_layers_hold_no_views_of_the_file() -> None:
    for name, schemes in golden_schemes().items():
        for scheme in schemes:
            tensors = FORMATS[name].encode(made_layer(scheme), torch.float32)
            decoded = FORMATS[name].decode(tensors, scheme, "x")
            for tensor in tensors.values():
                tensor.fill_(1)
            assert decoded.equals(made_layer(scheme))


def test_auto_selects_compressed_tensors_where_it_fits() -> None:
    for scheme in (QuantScheme(4, 32), QuantScheme(3, 32), QuantScheme(4, 32, symmetric=False)):
        assert find_format(contents(scheme)) == (FORMATS["compressed-tensors"], "")
    nothing_fits = contents(QuantScheme(8, 32, symmetric=False, activations="dynamic"))
    with pytest.raises(
        ValueError, match=r"^format compressed-tensors: .* have in.*; format gptq: "
    ):
        choose_format(nothing_fits)


def test_formats_are_identified_by_their_configuration() -> None:
    assert format_of({"quant_method": "gptq"}).name == "gptq"
    assert format_of({"quant_method": "gptq", "checkpoint_format": "gptq_v2"}).name == "gptq_v2"
    assert format_of({"quant_method": "awq", "format": "gemm"}).name == "awq"
    for config in ({"quant_method": "gptq_v2"}, {"quant_method": "bitsandbytes"}, {}):
        with pytest.raises(ValueError, match="allowed: gptq, compressed-tensors, awq"):
            format_of(config)
