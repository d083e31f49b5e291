"""Masks: which weights are zero, with rounding and with a solver."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlpress.quant.methods import gptq as solver
from vlpress.quant.methods import masks
from vlpress.quant.methods.affine import choose_qparams
from vlpress.quant.methods.gptq import gptq
from vlpress.quant.methods.layer_error import row_energy
from vlpress.quant.methods.masks import choose_zeros, hold_zeros
from vlpress.quant.recipe.grids import GRIDS
from vlpress.quant.recipe.mask import PATTERNS, MaskRule
from vlpress.quant.recipe.scheme import GridScheme, QuantScheme, TableScheme

T, F = True, False


def problem(rows: int = 48, columns: int = 128, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the Hessian of correlated inputs, some features with much more energy."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(1000, columns, generator=generator) @ (mix + 0.3 * torch.eye(columns))
    inputs *= torch.rand(columns, generator=generator) * 4
    return torch.randn(rows, columns, generator=generator), inputs.t() @ inputs / 1000


def test_magnitude_and_energy_rank_differently() -> None:
    weight = torch.tensor([[3.0, -1.0, 2.0, 0.5], [-0.1, 0.2, 0.3, -0.4]])
    by_size = choose_zeros(weight, MaskRule(0.5, "magnitude"))
    assert by_size.tolist() == [[F, T, F, T], [T, T, F, F]]
    energies = torch.tensor([0.0, 100.0, 1.0, 1.0])
    by_output = choose_zeros(weight, MaskRule(0.5, "wanda"), energies)
    assert by_output.tolist() == [[T, F, F, T], [T, F, T, F]]
    assert choose_zeros(weight, MaskRule("1:2", "magnitude")).tolist() == [
        [F, T, F, T],
        [T, F, T, F],
    ]
    in_pairs = choose_zeros(weight, MaskRule("1:2", "wanda"), energies)
    assert in_pairs.tolist() == [[T, F, F, T], [T, F, T, F]]


@given(
    keep=st.one_of(st.floats(0.01, 0.99), st.sampled_from(PATTERNS)),
    rows=st.integers(1, 9),
    columns=st.sampled_from([8, 24, 64]),
    seed=st.integers(0, 99),
)
def test_every_row_keeps_its_share_of_the_largest(
    keep: float | str, rows: int, columns: int, seed: int
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    rule = MaskRule(keep, "magnitude")
    zeros = choose_zeros(weight, rule)
    kept, width = rule.pattern or (rule.kept(columns), columns)
    runs, sizes = (~zeros).reshape(-1, width), weight.abs().reshape(-1, width)
    assert set(runs.sum(dim=1).tolist()) == {kept}
    least = sizes.masked_fill(~runs, torch.inf).amin(dim=1)
    assert bool((sizes.masked_fill(runs, 0).amax(dim=1) <= least).all())


def test_runs_of_rows_give_the_same_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = problem()
    rule = MaskRule("2:4", "wanda")
    whole = choose_zeros(weight, rule, hessian.diagonal())
    monkeypatch.setattr(masks, "CHUNK_ELEMENTS", 5 * 128)
    assert torch.equal(choose_zeros(weight, rule, hessian.diagonal()), whole)


@pytest.mark.parametrize("score", ["wanda", "sparsegpt"])
def test_scores_of_the_input_need_samples(score: Any) -> None:
    with pytest.raises(ValueError, match=f"score {score} .* allowed without: magnitude"):
        choose_zeros(torch.ones(2, 8), MaskRule(0.5, score))


def sparsegpt(
    weight: torch.Tensor, hessian: torch.Tensor, scheme: QuantScheme, rule: MaskRule, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers and zeros by algorithm 1 of the paper, with explicit inverses in float64.

    Half of each block becomes zero, those with the smallest `w^2 / [H^-1]_jj`, where the inverse is
    that of the Hessian of the columns from j on. Patterns are compared row by row.
    """
    columns = weight.shape[1]
    zeros = torch.zeros_like(weight, dtype=torch.bool)
    first = choose_zeros(weight, rule, hessian.diagonal())
    scales, points = choose_qparams(hold_zeros(weight, first), scheme)
    H = hessian.double() + 0.01 * hessian.diagonal().double().mean() * torch.eye(columns)
    inverses = [torch.linalg.inv(H[j:, j:]) for j in range(columns)]
    W, Q = weight.double().clone(), torch.zeros_like(weight)
    for i in range(columns):
        if i % block == 0:
            diagonal = torch.stack([inverses[j][0, 0] for j in range(i, i + block)])
            score = W[:, i : i + block].square() / diagonal
            rows = score if rule.pattern else score.reshape(1, -1)
            least = rows.sort(dim=1).values[:, : rows.shape[1] // 2].amax(dim=1, keepdim=True)
            zeros[:, i : i + block] = (rows <= least).reshape(score.shape)
        s, z = (t[:, i // scheme.width(columns)].double() for t in (scales, points))
        q = ((hold_zeros(W[:, i], zeros[:, i]) / s).round() + z).clamp(0, scheme.max_level)
        error = (W[:, i] - (q - z) * s) / inverses[i][0, 0]
        W[:, i:] -= error[:, None] * inverses[i][0]
        Q[:, i] = q.float()
    return Q.to(torch.uint8), zeros


@pytest.mark.parametrize(("keep", "block"), [(0.5, 32), (0.5, 64), ("2:4", 4), ("4:8", 8)])
def test_sparsegpt_is_that_of_the_paper(keep: float | str, block: int) -> None:
    weight, hessian = problem()
    rule = MaskRule(keep, "sparsegpt")
    scheme = QuantScheme(4, 32)
    integers, zeros = sparsegpt(weight, hessian, scheme, rule, block)
    result = gptq(
        weight,
        hessian,
        scheme,
        act_order=False,
        scale_search=False,
        block_size=64 if isinstance(keep, str) else block,
        mask=rule,
    )
    assert result.fallback_rows == 0
    assert bool((result.weight.integers[zeros] == scheme.midpoint).all())
    assert torch.equal(result.weight.integers, integers)


def test_zeros_ruled_by_the_solver_err_less() -> None:
    weight, hessian = problem(rows=64, columns=256)
    for keep in (0.5, "2:4"):
        errors = [
            gptq(
                weight,
                hessian,
                QuantScheme(4, 32),
                act_order=False,
                mask=MaskRule(keep, score),
            ).final_error
            for score in ("sparsegpt", "wanda", "magnitude")
        ]
        assert errors == sorted(errors)
        assert errors[0] < 0.8 * errors[2]


@pytest.mark.parametrize("score", ["magnitude", "wanda", "sparsegpt"])
def test_rounding_that_rows_fall_back_to_has_the_same_mask(
    monkeypatch: pytest.MonkeyPatch, score: Any
) -> None:
    weight, hessian = problem()
    rule = MaskRule(0.25, score)
    solved = gptq(weight, hessian, QuantScheme(8, 32), mask=rule)
    zeros = solved.weight.integers == 128
    assert zeros.float().mean().item() == pytest.approx(0.75, abs=0.01)
    monkeypatch.setattr(solver, "_TIE", -2.0)  # every row falls back
    rounded = gptq(weight, hessian, QuantScheme(8, 32), mask=rule)
    assert rounded.fallback_rows == len(weight)
    both = (rounded.weight.integers == 128) & zeros
    assert both.float().mean().item() == pytest.approx(0.75, abs=0.01)
    difference = weight - rounded.weight.dequantize()
    energy = row_energy(weight, hessian).sum()
    by_hand = float(row_energy(difference, hessian).sum() / energy)
    assert rounded.rtn_error == pytest.approx(by_hand, rel=1e-3)
    assert solved.error < 0.99 * solved.rtn_error


def test_a_layer_without_a_factor_has_the_mask_of_wanda() -> None:
    weight, _ = problem()
    hessian = torch.eye(128)
    hessian[0, 1] = hessian[1, 0] = 50.0
    rule = MaskRule("2:4", "sparsegpt")
    result = gptq(weight, hessian, QuantScheme(8, 32), act_order=False, mask=rule)
    assert result.fallback is not None
    zeros = choose_zeros(weight, MaskRule("2:4", "wanda"), hessian.diagonal())
    assert bool((result.weight.dequantize()[zeros] == 0).all())


@pytest.mark.parametrize("options", [{}, {"act_order": False, "block_size": 6}])
def test_neighbours_that_are_not_solved_together_are_refused(options: dict[str, Any]) -> None:
    weight, hessian = problem()
    rule = MaskRule("2:4", "sparsegpt")
    with pytest.raises(ValueError, match=r"keep 2:4 by sparsegpt .* allowed: act_order false"):
        gptq(weight, hessian, QuantScheme(4, 32), mask=rule, **options)


SCHEMES: list[GridScheme] = [
    QuantScheme(4, 32, symmetric=False),
    QuantScheme(2, 32),
    *(TableScheme(name) for name in GRIDS),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
def test_zero_is_a_level_of_every_grid(scheme: GridScheme) -> None:
    weight, hessian = problem()
    weight += 0.5  # asymmetric grids get a zero point that is no midpoint
    zeros = choose_zeros(weight, MaskRule("2:4", "wanda"), hessian.diagonal())
    result: Any = gptq(weight, hessian, scheme, mask=MaskRule("2:4", "wanda"))
    assert bool((result.weight.dequantize()[zeros] == 0).all())
    grid = scheme.fit_for_rounding(hold_zeros(weight, zeros), hessian)
    rounded = grid.compressed(grid.nearest(hold_zeros(weight, zeros))).dequantize()
    assert bool((rounded[zeros] == 0).all())
    assert float((rounded[~zeros] == 0).float().mean()) < 0.5
