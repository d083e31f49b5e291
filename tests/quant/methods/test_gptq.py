import pytest
import torch

from vlpress.quant.methods.affine import QuantizedWeight, choose_qparams, quantize
from vlpress.quant.methods.gptq import GPTQResult, gptq
from vlpress.quant.methods.hessian import cholesky
from vlpress.quant.methods.layer_error import row_energy
from vlpress.quant.methods.rtn import rtn
from vlpress.quant.recipe.scheme import QuantScheme


def problem(
    rows: int = 48, columns: int = 128, tokens: int = 1000, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the Hessian of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(tokens, columns, generator=generator) @ (mix + 0.3 * torch.eye(columns))
    weight = torch.randn(rows, columns, generator=generator)
    return weight, inputs.t() @ inputs / tokens


def textbook_gptq(
    weight: torch.Tensor, hessian: torch.Tensor, scheme: QuantScheme, damp: float
) -> torch.Tensor:
    """Columns left to right with an explicit inverse, shrunk after each column (float64).

    The optimal-brain form that the paper derives its Cholesky version from.
    """
    scales, zeros = choose_qparams(weight, scheme)
    columns = weight.shape[1]
    H = hessian.double() + damp * hessian.diagonal().double().mean() * torch.eye(columns)
    W, Q = weight.double().clone(), torch.zeros_like(weight)
    for i in range(columns):
        inverse = torch.linalg.inv(H[i:, i:])
        group = i // scheme.width(columns)
        s, z = scales[:, group].double(), zeros[:, group].double()
        q = ((W[:, i] / s).round() + z).clamp(0, scheme.max_level)
        error = (W[:, i] - (q - z) * s) / inverse[0, 0]
        W[:, i:] -= error[:, None] * inverse[0]
        Q[:, i] = q.float()
    return Q.to(torch.uint8)


def rounded_alike(weight: torch.Tensor, result: GPTQResult[QuantizedWeight]) -> QuantizedWeight:
    """Plain rounding on the grid of a result."""
    grid = result.weight
    integers = quantize(weight, grid.scales, grid.zero_points, grid.scheme)
    return QuantizedWeight(integers, grid.scales, grid.zero_points, grid.scheme)


@pytest.mark.parametrize("scheme", [QuantScheme(4, 32), QuantScheme(3, -1), QuantScheme(8, 64)])
def test_equals_the_textbook_form(scheme: QuantScheme) -> None:
    weight, hessian = problem(rows=16, columns=64)
    result = gptq(weight, hessian, scheme, act_order=False, block_size=24, scale_search=False)
    expected = textbook_gptq(weight, hessian, scheme, 0.01)
    same = (result.weight.integers == expected).float().mean()
    # float32 against float64: a tie may fall to the other side and move its successors
    assert float(same) > (0.95 if scheme.bits == 8 else 0.99)
    assert result.damp_percent == 0.01
    assert result.precision == "float32"


def test_act_order_equals_permuting_the_problem() -> None:
    weight, hessian = problem()
    scheme = QuantScheme(4, -1)
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    permuted = gptq(weight[:, order], hessian[order][:, order], scheme, act_order=False)
    restored = torch.empty_like(permuted.weight.integers)
    restored[:, order] = permuted.weight.integers
    assert torch.equal(gptq(weight, hessian, scheme).weight.integers, restored)


def test_groups_are_static_under_act_order() -> None:
    weight, hessian = problem()
    result = gptq(weight, hessian, QuantScheme(4, 32), scale_search=False)
    scales, _ = choose_qparams(weight, QuantScheme(4, 32))
    assert torch.equal(result.weight.scales, scales)
    assert result.weight.group_index is None


@pytest.mark.parametrize("block_size", [1, 7, 64, 500])
def test_block_size_changes_nothing(block_size: int) -> None:
    weight, hessian = problem()
    scheme = QuantScheme(4, 32)
    integers = gptq(weight, hessian, scheme, block_size=block_size).weight.integers
    base = gptq(weight, hessian, scheme).weight.integers
    assert float((integers == base).float().mean()) > 0.99


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("act_order", [False, True])
def test_beats_rounding_on_correlated_inputs(bits: int, act_order: bool) -> None:
    weight, hessian = problem()
    scheme = QuantScheme(bits, 32)
    result = gptq(weight, hessian, scheme, act_order=act_order)
    assert result.error < 0.7 * result.rtn_error
    difference = weight - result.weight.dequantize()
    by_hand = torch.trace(difference @ hessian @ difference.t()) / torch.trace(
        weight @ hessian @ weight.t()
    )
    assert result.final_error == pytest.approx(float(by_hand), rel=1e-3)
    rounded = weight - rounded_alike(weight, result).dequantize()
    rounded_by_hand = torch.trace(rounded @ hessian @ rounded.t()) / torch.trace(
        weight @ hessian @ weight.t()
    )
    assert result.rtn_error == pytest.approx(float(rounded_by_hand), rel=1e-3)


@pytest.mark.parametrize(("bits", "gain"), [(3, 0.85), (4, 0.97), (8, 1.01)])
def test_searched_scales_err_less(bits: int, gain: float) -> None:
    weight, hessian = problem(rows=64, columns=256)
    searched = gptq(weight, hessian, QuantScheme(bits, 128))
    plain = gptq(weight, hessian, QuantScheme(bits, 128), scale_search=False)
    assert searched.final_error < gain * plain.final_error


def test_uncorrelated_inputs_give_plain_rounding() -> None:
    weight, _ = problem()
    result = gptq(weight, torch.eye(128), QuantScheme(4, 32))
    assert result.weight.equals(rounded_alike(weight, result))
    assert result.error == pytest.approx(result.rtn_error, rel=1e-5)
    unsearched = gptq(weight, torch.eye(128), QuantScheme(4, 32), scale_search=False)
    assert unsearched.weight.equals(rtn(weight, QuantScheme(4, 32), signed=False))


def test_scale_of_the_hessian_does_not_matter() -> None:
    weight, hessian = problem()
    small = gptq(weight, hessian * 2.0**-20, QuantScheme(4, 32))
    assert small.weight.equals(gptq(weight, hessian, QuantScheme(4, 32)).weight)


def test_dead_columns_are_rounded() -> None:
    weight, hessian = problem()
    dead = [3, 40, 127]
    hessian[dead, :] = 0
    hessian[:, dead] = 0
    result = gptq(weight, hessian, QuantScheme(4, 32))
    assert result.dead_columns == 3
    rounded = rounded_alike(weight, result)
    assert torch.equal(result.weight.integers[:, dead], rounded.integers[:, dead])
    assert result.weight.dequantize()[:, dead].abs().mean() > 0.1
    assert result.error < result.rtn_error


def test_all_columns_dead() -> None:
    weight, _ = problem()
    result = gptq(weight, torch.zeros(128, 128), QuantScheme(4, 32))
    assert result.weight.equals(rounded_alike(weight, result))
    assert result.dead_columns == 128


def test_rows_where_rounding_is_better_fall_back() -> None:
    # Clamping at 2 bits breaks the compensation on rows that are already on the grid's edge.
    weight, hessian = problem(rows=64, columns=64, tokens=64)
    result = gptq(weight, hessian, QuantScheme(2, -1), damp_percent=1e-4)
    rounded = rounded_alike(weight, result)
    equal_rows = (result.weight.integers == rounded.integers).all(dim=1)
    assert int(equal_rows.sum()) == result.fallback_rows > 0
    assert result.final_error <= min(result.error, result.rtn_error) * (1 + 1e-6)


def test_float64_is_tried_after_the_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def fail_in_float32(matrix: torch.Tensor) -> torch.Tensor | None:
        seen.append(matrix.dtype)
        return None if matrix.dtype == torch.float32 else original(matrix)

    original = cholesky.cholesky_
    monkeypatch.setattr(cholesky, "cholesky_", fail_in_float32)
    weight, hessian = problem()
    result = gptq(weight, hessian, QuantScheme(4, 32))
    assert seen == [torch.float32] * len(cholesky.LADDER) + [torch.float64]
    assert (result.precision, result.damp_percent, result.fallback) == ("float64", 0.01, None)
    assert result.error < result.rtn_error


@pytest.mark.parametrize("scheme", [QuantScheme(4, 32), QuantScheme(3, -1, symmetric=False)])
@pytest.mark.parametrize("damp_percent", [1e-4, 0.01, 0.5])
@pytest.mark.parametrize("dead", [0, 5])
def test_errors_are_those_of_the_undamped_hessian(
    scheme: QuantScheme, damp_percent: float, dead: int
) -> None:
    weight, hessian = problem()
    hessian[:, :dead] = hessian[:dead] = 0
    result = gptq(weight, hessian, scheme, damp_percent=damp_percent)
    energy = row_energy(weight, hessian).sum()

    def error_of(candidate: QuantizedWeight) -> float:
        return float(row_energy(weight - candidate.dequantize(), hessian).sum() / energy)

    assert result.final_error == pytest.approx(error_of(result.weight), rel=1e-3)
    assert result.rtn_error == pytest.approx(error_of(rounded_alike(weight, result)), rel=1e-3)


def test_hopeless_hessian_is_a_visible_fallback() -> None:
    weight, _ = problem()
    hessian = torch.eye(128)
    hessian[0, 1] = hessian[1, 0] = 50.0
    result = gptq(weight, hessian, QuantScheme(4, 32))
    assert result.fallback is not None
    assert "no Cholesky factor up to damping 1" in result.fallback
    assert result.damp_percent is None
    assert result.weight.equals(rounded_alike(weight, result))


def test_same_input_same_result() -> None:
    weight, hessian = problem()
    first = gptq(weight, hessian, QuantScheme(4, 32))
    weight_before, hessian_before = problem()
    assert torch.equal(weight, weight_before)
    assert torch.equal(hessian, hessian_before)
    assert gptq(weight, hessian, QuantScheme(4, 32)).weight.equals(first.weight)


def test_rejects() -> None:
    weight, hessian = problem()
    with pytest.raises(ValueError, match=r"the Hessian is \(64, 64\)"):
        gptq(weight, hessian[:64, :64], QuantScheme(4, 32))
    with pytest.raises(ValueError, match="damp_percent is 0"):
        gptq(weight, hessian, QuantScheme(4, 32), damp_percent=0)
    with pytest.raises(ValueError, match="block_size is 0"):
        gptq(weight, hessian, QuantScheme(4, 32), block_size=0)
    hessian[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"not finite.*bf16 or fp32"):
        gptq(weight, hessian, QuantScheme(4, 32))
