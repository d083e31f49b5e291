"""Products of unquantized bf16 matrices: Hessians and the output head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlpress.quant.kernels import bf16_linear, library

AVAILABLE = [name for name in library.NAMES if not isinstance(library.find_kernels(name), str)]
if not AVAILABLE:
    pytest.skip(f"{library.find_kernels()}", allow_module_level=True)


def kernels(name: str) -> library.Kernels:
    table = library.find_kernels(name)
    assert not isinstance(table, str)
    return table


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize(("tokens", "width"), [(1, 5), (7, 64), (40, 70), (600, 200), (33, 1100)])
def test_syrk(name: str, tokens: int, width: int) -> None:
    random = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, width + 3, generator=random).bfloat16()[:, 3:]
    lower = torch.full((width, width), 2.0)
    bf16_linear.syrk_(lower, x, kernels(name), alpha=0.5, beta=0.25)
    expected = 0.25 * 2 + 0.5 * (x.double().t() @ x.double())
    error = (lower.double() - expected).tril().abs().max() / expected.abs().max()
    assert float(error) < 5e-6


def test_syrk_rejects_other_dtypes_and_shapes() -> None:
    best = kernels(AVAILABLE[0])
    with pytest.raises(ValueError, match=r"torch\.float32, lower torch\.float32.*bf16"):
        bf16_linear.syrk_(torch.zeros(4, 4), torch.zeros(2, 4), best)
    with pytest.raises(ValueError, match=r"\(2, 4\), lower \(3, 3\)"):
        bf16_linear.syrk_(torch.zeros(3, 3), torch.zeros(2, 4, dtype=torch.bfloat16), best)


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize(
    ("rows", "columns", "width"), [(1, 64, 128), (3, 130, 72), (8, 65, 300), (19, 5, 31), (2, 1, 1)]
)
def test_gemv_and_gemm(name: str, rows: int, columns: int, width: int) -> None:
    random = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 2 * width, generator=random).bfloat16()[:, width:]
    weight = torch.randn(columns, width, generator=random).bfloat16()
    bias = torch.randn(columns, generator=random).bfloat16()
    for multiply in (bf16_linear.gemv, bf16_linear.gemm):
        for shift in (None, bias):
            actual = multiply(x, weight, kernels(name), shift)
            exact = x.double() @ weight.double().T + (0 if shift is None else shift.double())
            assert actual.shape == exact.shape
            # Rounded once: half a unit in the last place, plus the rounding of float32 sums.
            assert ((actual.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-4).all()


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("rows", [0, 1, 47, 700])
def test_gemm_of_many_rows(name: str, rows: int) -> None:
    random = torch.Generator().manual_seed(rows)
    x = torch.randn(2, rows, 1100, generator=random).bfloat16()
    weight = torch.randn(130, 1100, generator=random).bfloat16()
    actual = bf16_linear.gemm(x, weight, kernels(name))
    exact = x.double() @ weight.double().T
    assert actual.shape == exact.shape
    assert ((actual.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-4).all()


@pytest.mark.parametrize("name", AVAILABLE)
def test_gemm_is_used_where_torch_is_slow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(bf16_linear.WITHOUT_BF16_UNITS) < set(library.NAMES)
    called: list[int] = []

    def record(x: Tensor, *_: object) -> Tensor:
        called.append(len(x))
        return x

    monkeypatch.setattr(bf16_linear, "gemm", record)
    product = bf16_linear.Bf16Linear(kernels(name))
    weight = torch.ones(3, 8, dtype=torch.bfloat16)
    for rows in (bf16_linear.GEMV_ROWS, bf16_linear.GEMV_ROWS + 1):
        product(torch.ones(rows, 8, dtype=torch.bfloat16), weight)
        product(torch.ones(rows, 8), weight.float())
    with torch.enable_grad():
        product(torch.ones(40, 8, dtype=torch.bfloat16, requires_grad=True), weight)
    assert called == ([bf16_linear.GEMV_ROWS + 1] if name in bf16_linear.WITHOUT_BF16_UNITS else [])


def test_products_reject_other_dtypes_and_shapes() -> None:
    best = kernels(AVAILABLE[0])
    with pytest.raises(ValueError, match=r"torch\.float32, the weight torch\.bfloat16"):
        bf16_linear.gemv(torch.zeros(2, 4), torch.zeros(3, 4, dtype=torch.bfloat16), best)
    with pytest.raises(ValueError, match=r"\(2, 5\), the weight \(3, 4\)"):
        zeros = torch.zeros(3, 5, dtype=torch.bfloat16)
        bf16_linear.gemv(zeros[:2], zeros[:, :4].contiguous(), best)


@pytest.mark.parametrize("name", AVAILABLE)
def test_compiled_code_uses_the_product_of_torch(name: str) -> None:
    product = bf16_linear.Bf16Linear(kernels(name))
    x, weight = torch.randn(40, 24).bfloat16(), torch.randn(8, 24).bfloat16()
    compiled = torch.compile(product, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, weight), torch.nn.functional.linear(x, weight))
    assert torch.equal(compiled(x[:2], weight), torch.nn.functional.linear(x[:2], weight))
