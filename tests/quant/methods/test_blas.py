from __future__ import annotations

import pytest
import torch

from vlpress.quant.methods import blas


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factor_replaces_the_matrix(dtype: torch.dtype) -> None:
    root = torch.randn(33, 33, dtype=dtype, generator=torch.Generator().manual_seed(0))
    matrix = root @ root.t() + 33 * torch.eye(33, dtype=dtype)
    expected, above = torch.linalg.cholesky(matrix), matrix.triu(1)
    assert blas.factor_(matrix)
    torch.testing.assert_close(matrix.tril(), expected)
    assert matrix.triu(1).equal(above)


def test_an_indefinite_matrix_has_no_factor() -> None:
    assert not blas.factor_(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))


def test_product_with_the_lower_triangle_replaces_the_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, matrix = torch.randn(5, 20, generator=generator), torch.randn(20, 20, generator=generator)
    expected = rows @ matrix.tril()
    blas.multiply_lower_(rows, matrix)
    torch.testing.assert_close(rows, expected)


@pytest.mark.parametrize("shape", [(0, 3, 4), (1, 1, 1), (17, 5, 9), (40, 64, 33)])
def test_transposed_product_of_views(shape: tuple[int, int, int]) -> None:
    k, m, n = shape
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(k + 2, m + 3, generator=generator)[2:, 1 : m + 1]
    right = torch.randn(k + 2, n, generator=generator)[2:]
    product = blas.transposed_product(left, right)
    assert product.shape == (m, n) and product.is_contiguous()
    torch.testing.assert_close(product, left.t() @ right)


def test_elsewhere_torch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = torch.ones(3, 2), torch.ones(3, 4)
    monkeypatch.setattr(blas, "is_supported", lambda matrix: False)
    monkeypatch.setattr("scipy.linalg.blas.sgemm", None)
    assert blas.transposed_product(left, right).equal(torch.full((2, 4), 3.0))
