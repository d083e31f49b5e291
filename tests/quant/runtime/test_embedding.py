"""A quantized token embedding: rows are those of the dequantized table, which never exists."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlpress.quant.methods.grids.table_weight import TableWeight
from vlpress.quant.methods.rtn import rtn
from vlpress.quant.recipe.scheme import QuantScheme, TableScheme
from vlpress.quant.runtime.embedding import QuantEmbedding


def table(tokens: int, hidden: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(seed))


@given(
    bits=st.sampled_from([2, 4, 8]),
    group_size=st.sampled_from([16, 32, -1]),
    symmetric=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    ids=st.lists(st.lists(st.integers(0, 10), min_size=3, max_size=3), min_size=1, max_size=4),
)
def test_rows_are_those_of_the_dequantized_table(
    bits: int, group_size: int, symmetric: bool, dtype: torch.dtype, ids: list[list[int]]
) -> None:
    weight = rtn(table(11, 32), QuantScheme(bits, group_size, symmetric))
    layer = QuantEmbedding(weight, torch.empty(0, dtype=dtype))
    rows = layer(torch.tensor(ids))
    assert rows.dtype == dtype and rows.shape == (len(ids), 3, 32)
    assert torch.equal(rows, weight.dequantize(dtype)[torch.tensor(ids)])
    assert layer.quantized().equals(weight)


def test_memory_is_that_of_the_integers() -> None:
    """4 bits, a float32 scale and a zero point per group; no dequantized copy, also after use."""
    layer = QuantEmbedding(rtn(table(64, 256), QuantScheme(4, 128)), torch.empty(0))
    layer(torch.arange(64))
    assert sum(t.nbytes for t in layer.state_dict().values()) == 64 * (256 // 2 + 2 * (4 + 1))
    assert sum(t.nbytes for t in layer.buffers()) == 64 * (256 // 2 + 2 * (4 + 1))


def test_a_change_of_dtype_changes_the_rows_alone() -> None:
    weight = rtn(table(8, 32), QuantScheme(4, 32))
    exact = QuantEmbedding(weight, torch.empty(0)).to(torch.bfloat16)
    assert exact.scales.dtype == torch.float32 and exact.quantized().equals(weight)
    assert torch.equal(exact(torch.arange(8)), weight.dequantize(torch.bfloat16))
    assert exact.to("meta").like.device.type == exact.scales.device.type == "meta"


def test_other_weights_are_refused() -> None:
    scheme = TableScheme("fp8")
    grid = scheme.fit_for_rounding(table(8, 32))
    fp8 = grid.compressed(grid.nearest(table(8, 32)))
    assert isinstance(fp8, TableWeight)
    with pytest.raises(ValueError, match=r"fp8.*allowed: integers"):
        QuantEmbedding(fp8, torch.empty(0))
    rounded = rtn(table(8, 32), QuantScheme(8, -1, activations="dynamic"))
    with pytest.raises(ValueError, match=r"dynamic activations.*allowed: integers"):
        QuantEmbedding(rounded, torch.empty(0))
