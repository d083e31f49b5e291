"""Estimate the run time of a plan on this machine, from a cached probe of half a second.

Linear layers, Hessians, the solver and the searches of transforms are counted. Attention, norms and
image preprocessing are not, so the estimate is low, the more so the smaller the model. The rates
are those of the moment of the probe, including the load by other programs. The estimate tells
minutes from hours, not more.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

import torch

from ...common.environment import device_name, processor_name, versions
from ...common.result_cache import Cached, cached
from ..driver.transforms import SEARCH_SHARE
from ..kernels.bf16_linear import select_linear, select_syrk
from ..methods.blas import transposed_product
from ..methods.gptq import gptq
from ..methods.smoothquant import ALPHAS
from ..recipe.presets import SEARCH
from ..recipe.scheme import QuantScheme
from ..recipe.steps import AWQStep, SmoothQuantStep
from .plan import Plan, PlanRow

NARROW, WIDE = 128, 256
"""Rows and columns of the layers that the probe solves: one group and two."""
STREAMED = (8192, 4096)
"""Rows and columns of the weight that the probe reads from memory: 64 MiB in 16 bits."""


@dataclass(frozen=True)
class Probe:
    """Rates of this machine, in seconds."""

    mac: float
    """One multiply-add of a linear layer in the model's dtype."""
    mac32: float
    """One multiply-add in float32."""
    hessian: float
    """One multiply-add of a Hessian."""
    column: float
    """Overhead of the solver per column."""
    solve_mac: float
    """One multiply-add of the solver."""
    search: float
    """Scale search per weight."""
    read: float = 0.0
    """One weight of a linear layer with a single token, which is read from memory."""


def probe(device: torch.device, dtype: torch.dtype) -> Probe:
    """Time four matrix products and three small layers."""
    mac, mac32 = (_product(device, kind) for kind in (dtype, torch.float32))
    hessian = _hessian(device, dtype) or mac32
    narrow, wide, searched = (
        _solver(device, *case) for case in ((NARROW, False), (WIDE, False), (NARROW, True))
    )
    few, many = _work(NARROW, NARROW), _work(WIDE, WIDE)
    # Two layers, two unknowns: seconds = column * width + solve_mac * work. The difference of two
    # short measurements may come out too small or negative, so it is bounded by a plain product.
    ratio = WIDE / NARROW
    solve_mac = max(_correction(device), (wide - ratio * narrow) / (many - ratio * few))
    column = max(0.0, (narrow - solve_mac * few) / NARROW)
    search = max(0.0, searched - narrow) / NARROW**2
    return Probe(mac, mac32, hessian, column, solve_mac, search, _reading(device, dtype))


def cached_probe(
    device: torch.device, dtype: torch.dtype, *, refresh: bool = False
) -> tuple[Probe, Cached]:
    """Return the rates of an earlier probe under the same conditions, or probe now.

    Args:
        device: to measure.
        dtype: of the model.
        refresh: probe in any case, and store the new rates.

    Returns:
        The rates, and the entry of the cache that they are in.
    """
    key = {
        "device": device_name(device),
        "processor": [processor_name(), os.cpu_count()],
        "threads": torch.get_num_threads(),
        "dtype": str(dtype),
        "kernel": os.environ.get("VLPRESS_KERNEL", ""),
        "versions": versions(),
        "probe": [NARROW, WIDE, *STREAMED],
    }
    entry = cached("rates", key, lambda: asdict(probe(device, dtype)), refresh=refresh)
    return Probe(**entry.value), entry


def estimate_time(
    plan: Plan, rates: Probe, *, true_sequential: bool = True, gradient: bool = False
) -> tuple[float, float]:
    """Estimate the seconds to solve all layers, and the seconds per calibration token of an image.

    Args:
        plan: the plan.
        rates: from `probe`.
        true_sequential: of the recipe's calibration.
        gradient: whether token weights are computed from gradients.
    """
    calibrated = plan.quantized if plan.calibrated else ()
    rows = plan.rows[: plan.rows.index(calibrated[-1]) + 1] if calibrated else ()
    patches = plan.config.vision.merge_unit
    per_token = 0.0
    if calibrated and gradient:
        per_token += _backward(plan) * rates.mac
    groups = groupby(rows, key=lambda row: (row.spec.stage, row.spec.block))
    blocks = [(stage, list(group)) for (stage, _), group in groups]
    asymmetric = (i for i, (_, block) in enumerate(blocks) if any(map(_is_asymmetric, block)))
    # From the first quantized block to the last asymmetric one, samples also pass in float.
    last_asymmetric, diverged = max(asymmetric, default=-1), False
    for index, (stage, block) in enumerate(blocks):
        weights, taps = 0, dict[str, tuple[int, int]]()
        for row in block:
            if row.step is not None and row.spec.tap not in taps:
                # A pass that observes this tap stops here.
                taps[row.spec.tap] = row.spec.in_features, weights
            weights += row.spec.weights
        resumes = true_sequential and stage == "decoder"
        depths = [depth for _, depth in taps.values()]
        macs = _pass_macs(depths, weights, resumes, true_sequential, index < len(blocks) - 1)
        hessians = sum(width**2 for width, _ in taps.values())
        extra, float32 = _preparing(plan, block, taps, weights)
        if index <= last_asymmetric:
            floats = {row.spec.tap: taps[row.spec.tap] for row in block if _is_asymmetric(row)}
            if not diverged:  # the float model's first input is the input itself
                for tap in list(taps)[:1] if true_sequential else list(taps):
                    floats.pop(tap, None)
            diverged = diverged or bool(taps)
            float_depths = [depth for _, depth in floats.values()]
            to_end = diverged and index < last_asymmetric
            macs += _pass_macs(float_depths, weights, resumes, true_sequential, to_end)
            float32 += sum(_cross_macs(block, tap) for tap in floats)
        seconds = (macs + extra) * rates.mac
        seconds += hessians * rates.hessian + float32 * rates.mac32
        per_token += seconds * (patches if stage == "vision" else 1)
    inputs = groupby(calibrated, key=lambda row: (row.spec.stage, row.spec.block, row.spec.tap))
    solving = sum(_solving(list(group), rates) for _, group in inputs)
    return solving + _searching(plan, rates), per_token


def _pass_macs(
    depths: Sequence[int], weights: int, resumes: bool, true_sequential: bool, to_end: bool
) -> int:
    """Count multiply-adds per token of a state's way through a block.

    Args:
        depths: number of weights before each observed input.
        weights: number of weights of the block.
        resumes: whether it resumes at each input instead of starting over, see
            `BlockRunner.run_to_tap`.
        true_sequential: of the recipe's calibration.
        to_end: whether its output is needed.
    """
    if resumes:
        return weights if to_end else max(depths, default=0)
    observing = sum(depths) if true_sequential else max(depths, default=0)
    return observing + (weights if to_end else 0)


def _cross_macs(block: Sequence[PlanRow], tap: str) -> int:
    """Count multiply-adds per token of a cross moment, see `CrossMoment`."""
    specs = [row.spec for row in block if row.spec.tap == tap and row.step is not None]
    width, outputs = specs[0].in_features, sum(spec.out_features for spec in specs)
    return min(width**2, 2 * width * outputs)


def _preparing(
    plan: Plan, block: Sequence[PlanRow], taps: Mapping[str, tuple[int, int]], weights: int
) -> tuple[float, float]:
    """Count multiply-adds per token of a block's transforms: in its layers, and in Hessians.

    Args:
        plan: the plan.
        block: rows of the block.
        taps: by tap, the width of the input and the number of weights before it in the block.
        weights: number of weights of the block.
    """
    passes, hessians = 0.0, 0.0
    rows = {row.name: row for row in block}
    measured = set[SmoothQuantStep]()
    for planned in plan.transforms:
        if planned.reason or not rows.keys() & set(planned.linears):
            continue
        step = planned.transform
        if isinstance(step, AWQStep):
            width, depth = taps[rows[planned.linears[0]].spec.tap]
            passes, hessians = passes + depth, hessians + width**2
            continue
        trials = len(ALPHAS)
        if step not in measured:
            measured.add(step)
            passes += max(depth for _, depth in taps.values())
            trials += 2 + len(ALPHAS)  # float output, no smoothing, one alpha for all groups
        if step.alpha == SEARCH:
            passes += trials * weights * SEARCH_SHARE
    return passes, hessians


def _searching(plan: Plan, rates: Probe) -> float:
    """Estimate the seconds that awq spends on its candidates."""
    specs = {row.name: row.spec for row in plan.quantized}
    macs = 0.0
    for planned in plan.transforms:
        if isinstance(planned.transform, AWQStep) and not planned.reason:
            layers = [specs[name] for name in planned.linears if name in specs]
            candidates = 2 * planned.transform.points
            macs += candidates * sum(spec.in_features * spec.weights for spec in layers)
    return macs * rates.mac32


def _is_asymmetric(row: PlanRow) -> bool:
    return row.step is not None and row.step.asymmetric_calibration


def _backward(plan: Plan) -> float:
    """Count multiply-adds per token of a forward pass, and of a backward pass of the decoder."""
    passes = {"vision": plan.config.vision.merge_unit, "merger": 1, "decoder": 2, "head": 0}
    return float(sum(passes[row.spec.stage] * row.spec.weights for row in plan.rows))


def _solving(rows: Sequence[PlanRow], rates: Probe) -> float:
    """Estimate the seconds that the solver takes for layers that share an input."""
    seconds, factors = 0.0, set[tuple[float, bool]]()
    for row in rows:
        step, columns = row.step, row.spec.in_features
        if step is None or not step.solves:
            continue
        work = _work(columns, row.spec.out_features)
        if (step.damp_percent, step.act_order) in factors:  # shared
            work -= _work(columns, 0)
        factors.add((step.damp_percent, step.act_order))
        if step.asymmetric_calibration:  # the product with the cross moment, two triangular solves
            work += 2 * columns**2 * row.spec.out_features
        search = rates.search * row.spec.weights if step.scale_search else 0.0
        seconds += rates.column * columns + rates.solve_mac * work + search
    return seconds


def _work(columns: int, rows: int) -> float:
    """Count the solver's multiply-adds: factor, corrections and two triangular products."""
    return columns**3 / 6 + 1.5 * columns**2 * rows


def _product(device: torch.device, dtype: torch.dtype) -> float:
    x, multiply = torch.ones(512, 512, device=device, dtype=dtype), select_linear(device)
    return _seconds(lambda: multiply(x, x, None), device) / 512**3


def _hessian(device: torch.device, dtype: torch.dtype) -> float | None:
    """Time a bf16 syrk per multiply-add; None if Hessians are plain float32 products here."""
    gram = select_syrk(device) if dtype == torch.bfloat16 else None
    if gram is None:
        return None
    x, lower = torch.ones(512, 1024, dtype=dtype), torch.zeros(1024, 1024)
    return _seconds(lambda: gram(lower, x, 1.0, 1.0), device) / (512 * 1024**2)


def _correction(device: torch.device) -> float:
    """Time a product like the solver's corrections, per multiply-add."""
    x = torch.ones(1024, 1024, device=device)
    return _seconds(lambda: transposed_product(x, x), device) / 1024**3


def _solver(device: torch.device, width: int, scale_search: bool) -> float:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(width, width, generator=generator).to(device)
    hessian = x.t() @ x
    scheme = QuantScheme(4, 128)
    return _seconds(lambda: gptq(x, hessian, scheme, scale_search=scale_search), device)


def _reading(device: torch.device, dtype: torch.dtype) -> float:
    """Time a layer with one token, per weight."""
    rows, columns = STREAMED
    x = torch.ones(1, columns, device=device, dtype=dtype)
    weight, multiply = torch.ones(rows, columns, device=device, dtype=dtype), select_linear(device)
    return _seconds(lambda: multiply(x, weight, None), device) / weight.numel()


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time a function: the better of two runs, of which the first one warms up."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)
