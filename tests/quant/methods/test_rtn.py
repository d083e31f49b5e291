"""Rounding in runs of rows: the same integers, errors and less memory."""

from __future__ import annotations

import pytest
import torch

from vlpress.quant.methods import rtn as module
from vlpress.quant.methods.layer_error import relative_error
from vlpress.quant.methods.rtn import row_chunks, rtn, rtn_by_rows
from vlpress.quant.recipe.scheme import QuantScheme
from vlpress.quant.steps.rtn import ENCODING, RTNStep


@pytest.mark.parametrize("scheme", [QuantScheme(4, 16), QuantScheme(8, -1, symmetric=False)])
def test_runs_of_rows_give_the_same_weight(
    monkeypatch: pytest.MonkeyPatch, scheme: QuantScheme
) -> None:
    weight = torch.randn(37, 32, generator=torch.Generator().manual_seed(0))
    whole = rtn(weight, scheme)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 5 * 32 + 7)
    assert [len(rows) for rows in row_chunks(weight)] == [5] * 7 + [2]
    assert rtn_by_rows(weight, scheme).equals(whole)
    solved = RTNStep(scheme).solve(weight, None)
    assert solved.weight.equals(whole)
    hessian = torch.eye(32)
    parts = [rtn(rows, scheme).dequantize() for rows in row_chunks(weight)]
    error = relative_error(row_chunks(weight), parts, hessian)
    assert error == pytest.approx(relative_error([weight], [whole.dequantize()], hessian), rel=1e-6)


def test_memory_of_a_large_matrix_follows_the_run() -> None:
    step = RTNStep(QuantScheme(8, 128))
    rows = module.chunk_rows(2048)
    run = step.memory(2048, rows, calibrated=True)
    assert step.memory(2048, 4 * rows, calibrated=True) == run + ENCODING * 4 * rows * 2048
    assert step.memory(2048, rows // 2, calibrated=True) < run
