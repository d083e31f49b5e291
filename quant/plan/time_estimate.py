"""How long a plan will take on this machine, from a probe of it that lasts under a second.

Counted are linear layers, Hessians, the solver and what transforms search. Attention, norms and the
preparation of pictures come on top, so the estimate is low, the more so the smaller the model; and
the rates are those of the moment, so another program on the machine shows. It tells minutes from
hours, not more.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from ..driver.transforms import SEARCH_SHARE
from ..kernels.bf16_linear import gram_on, product_on
from ..methods.blas import transposed_product
from ..methods.gptq import gptq
from ..methods.smoothquant import ALPHAS
from ..recipe.scheme import QuantScheme
from ..recipe.steps import SEARCH, AWQStep, SmoothQuantStep
from .plan import Plan, PlanRow


@dataclass(frozen=True)
class Probe:
    """Seconds that elementary work takes here."""

    mac: float
    """One multiply-add of a linear layer in the model's data type."""
    mac32: float
    """One multiply-add in float32."""
    hessian: float
    """One multiply-add of a Hessian."""
    column: float
    """The solver's overhead for one column."""
    solve_mac: float
    """One multiply-add of the solver."""
    search: float
    """Searching the scale, for one weight."""


def probe(device: torch.device, dtype: torch.dtype) -> Probe:
    """Time two matrix products and three small layers."""
    mac, mac32 = (_product(device, kind) for kind in (dtype, torch.float32))
    hessian = _hessian(device, dtype) or mac32
    narrow, wide, searched = (
        _solver(device, *case) for case in ((128, False), (512, False), (512, True))
    )
    few, many = _work(128, 128), _work(512, 512)
    # Two layers, two unknowns: seconds = column * width + solve_mac * work.
    ratio = 512 / 128
    solve_mac = max(_correction(device), (wide - ratio * narrow) / (many - ratio * few))
    column = max(0.0, (narrow - solve_mac * few) / 128)
    return Probe(mac, mac32, hessian, column, solve_mac, max(0.0, searched - wide) / 512**2)


def estimate_time(
    plan: Plan, rates: Probe, *, true_sequential: bool = True, gradient: bool = False
) -> tuple[float, float]:
    """Seconds to solve all layers, and seconds for each calibration token of a picture.

    Args:
        plan: what will be done.
        rates: from `probe`.
        true_sequential: of the recipe's calibration.
        gradient: whether token weights are found by gradient.
    """
    captured = plan.quantized if plan.calibrated else ()
    rows = plan.rows[: plan.rows.index(captured[-1]) + 1] if captured else ()
    patches = plan.config.vision.merge_unit
    per_token = 0.0
    if captured and gradient:
        per_token += _backward(plan) * rates.mac
    groups = groupby(rows, key=lambda row: (row.spec.stage, row.spec.block))
    blocks = [(stage, list(group)) for (stage, _), group in groups]
    paired = (i for i, (_, block) in enumerate(blocks) if any(map(_is_asymmetric, block)))
    last_paired, parted = max(paired, default=-1), False
    for index, (stage, block) in enumerate(blocks):
        done, taps = 0, dict[str, tuple[int, int]]()
        for row in block:
            if row.step is not None and row.spec.tap not in taps:
                taps[row.spec.tap] = row.spec.in_features, done  # a pass to watch it ends here
            done += row.spec.weights
        runs = [run for _, run in taps.values()] or [0]
        watching = sum(runs) if true_sequential else max(runs)
        squares = sum(width**2 for width, _ in taps.values())
        passes, more = _preparing(plan, block, taps, done)
        if index <= last_paired:
            floats = {row.spec.tap: taps[row.spec.tap] for row in block if _is_asymmetric(row)}
            runs = [run for _, run in floats.values()] or [0]
            passes += sum(runs) if true_sequential else max(runs)
            more += sum(width**2 for width, _ in floats.values())
            parted = parted or bool(taps)
            passes += done if parted and index < last_paired else 0
        behind = done
        is_last = index == len(blocks) - 1
        if true_sequential and stage == "decoder" and not parted and not is_last and taps:
            # Samples are checkpointed at each tap and resume there (`BlockRunner.checkpoint_at_tap`).
            watching, behind = max(runs), done - max(runs)
        seconds = (watching + behind + passes) * rates.mac
        seconds += squares * rates.hessian + more * rates.mac32
        per_token += seconds * (patches if stage == "vision" else 1)
    solving = sum(_solving(row, rates) for row in captured if _is_solved(row))
    return solving + _searching(plan, rates), per_token


def _preparing(
    plan: Plan, block: Sequence[PlanRow], taps: Mapping[str, tuple[int, int]], done: int
) -> tuple[float, float]:
    """Multiply-adds per token of a block's transforms: of its layers, and of Hessians."""
    passes, squares = 0.0, 0.0
    rows = {row.name: row for row in block}
    seen = set[SmoothQuantStep]()
    for planned in plan.transforms:
        if planned.reason or not rows.keys() & set(planned.linears):
            continue
        step = planned.transform
        if isinstance(step, AWQStep):
            width, run = taps[rows[planned.linears[0]].spec.tap]
            passes, squares = passes + run, squares + width**2
            continue
        trials = len(ALPHAS)
        if step not in seen:
            seen.add(step)
            passes += max(run for _, run in taps.values())
            trials += 2 + len(ALPHAS)  # the original, without smoothing, one alpha for all
        if step.alpha == SEARCH:
            passes += trials * done * SEARCH_SHARE
    return passes, squares


def _searching(plan: Plan, rates: Probe) -> float:
    """Seconds in which awq tries its candidates on the layers that read a binding."""
    specs = {row.name: row.spec for row in plan.quantized}
    macs = 0.0
    for planned in plan.transforms:
        if isinstance(planned.transform, AWQStep) and not planned.reason:
            layers = [specs[name] for name in planned.linears if name in specs]
            tried = 2 * planned.transform.points
            macs += tried * sum(spec.in_features * spec.weights for spec in layers)
    return macs * rates.mac32


def _is_solved(row: PlanRow) -> bool:
    return row.step is not None and row.step.solves


def _is_asymmetric(row: PlanRow) -> bool:
    return row.step is not None and row.step.asymmetric


def _backward(plan: Plan) -> float:
    """Multiply-adds per token of gradients: forward through all, backward through the decoder."""
    passes = {"vision": plan.config.vision.merge_unit, "merger": 1, "decoder": 2, "head": 0}
    return float(sum(passes[row.spec.stage] * row.spec.weights for row in plan.rows))


def _solving(row: PlanRow, rates: Probe) -> float:
    columns, rows = row.spec.in_features, row.spec.out_features
    search = rates.search * row.spec.weights if row.step and row.step.scale_search else 0.0
    work = _work(columns, rows)
    if _is_asymmetric(row):  # factor, product and solution in float64, at half the rate
        work += 2 * (columns**3 / 3 + 3 * columns**2 * rows)
    return rates.column * columns + rates.solve_mac * work + search


def _work(columns: int, rows: int) -> float:
    """Multiply-adds: factor; corrections and two triangular products."""
    return columns**3 / 6 + 1.5 * columns**2 * rows


def _product(device: torch.device, dtype: torch.dtype) -> float:
    x, multiply = torch.ones(512, 512, device=device, dtype=dtype), product_on(device)
    return _seconds(lambda: multiply(x, x, None), device) / 512**3


def _hessian(device: torch.device, dtype: torch.dtype) -> float | None:
    """None where it is a product like any other in float32."""
    gram = gram_on(device) if dtype == torch.bfloat16 else None
    if gram is None:
        return None
    x, lower = torch.ones(512, 1024, dtype=dtype), torch.zeros(1024, 1024)
    return _seconds(lambda: gram(lower, x, 1.0, 1.0), device) / (512 * 1024**2)


def _correction(device: torch.device) -> float:
    """A product as the solver makes most of."""
    x = torch.ones(1024, 1024, device=device)
    return _seconds(lambda: transposed_product(x, x), device) / 1024**3


def _solver(device: torch.device, width: int, scale_search: bool) -> float:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(width, width, generator=generator).to(device)
    hessian = x.t() @ x
    scheme = QuantScheme(4, 128)
    return _seconds(lambda: gptq(x, hessian, scheme, scale_search=scale_search), device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Best of three runs after a first one."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
