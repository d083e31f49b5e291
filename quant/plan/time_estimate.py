"""Estimate the run time of a plan on this machine, from a cached probe of half a second.

Linear layers, Hessians, the solver and the searches of transforms are counted. Attention, norms and
image preprocessing are not, so the estimate is low, the more so the smaller the model. The rates
are those of the moment of the probe, including the load by other programs. The estimate tells
minutes from hours, not more.
"""

import os
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

import torch

from ...calib.statistics import HESSIAN
from ...calib.tap_groups import Needs, group_by_input, group_needs, observation_passes
from ...common.environment import device_name, processor_name, versions
from ...common.result_cache import Cached, cached
from ...model.families import CARRIED_PARTS, family_of
from ..kernels.bf16_linear import select_linear, select_syrk
from ..methods.blas import transposed_product
from ..methods.gptq import gptq
from ..recipe.scheme import QuantScheme
from ..steps.adapter import adapter_macs
from ..steps.gptq import GPTQStep
from ..steps.step import Work
from ..steps.transform import GroupSize, Transform, TransformWork
from .channel_groups import PlannedTransform
from .plan import Plan, PlanRow

NARROW, WIDE = 128, 256
"""Rows and columns of the layers that the probe solves: one group and two."""
_UNREACHED = ("embedding", *CARRIED_PARTS)
"""Parts that no sample multiplies."""
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
    few, many = (work.macs + work.factor_macs for work in map(_probe_work, (NARROW, WIDE)))
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
    # Rounding the token embedding and carried layers takes next to no time.
    multiplied = [row for row in plan.rows if row.spec.part not in _UNREACHED]
    calibrated = [row for row in multiplied if row.step] if plan.calibrated else []
    rows = multiplied[: multiplied.index(calibrated[-1]) + 1] if calibrated else []
    patches = plan.config.vision.merge_unit
    per_token, searching = 0.0, 0.0
    if calibrated and gradient:
        per_token += _backward(plan) * rates.mac
    groups = groupby(rows, key=lambda row: (row.spec.stage, row.spec.block))
    family = family_of(plan.config)
    blocks = [(family.stage(name), list(group)) for (name, _), group in groups]
    with_float = (i for i, (_, block) in enumerate(blocks) if any(map(_uses_float, block)))
    # From the first quantized block to the last one with statistics of the float model, samples
    # also pass in float.
    last_with_float, diverged = max(with_float, default=-1), False
    for index, (stage, block) in enumerate(blocks):
        weights, taps = 0, dict[str, tuple[int, int]]()
        before_experts: int | None = None
        for row in block:
            if row.spec.expert is not None and before_experts is None:
                before_experts = weights
            if row.step is not None and row.spec.tap not in taps:
                # A pass that observes this tap stops here.
                taps[row.spec.tap] = row.spec.in_features, weights
            weights += round(row.spec.token_share * row.spec.weights)
        resumes = true_sequential and stage.checkpoints is not None
        way = _Way(
            weights,
            weights if before_experts is None else before_experts,
            resumes,
            None if true_sequential else _pass_count(block),
        )
        macs = way.macs([depth for _, depth in taps.values()], index < len(blocks) - 1)
        observed = {(row.spec.tap, row.spec.expert): row.spec for row in block if row.step}
        hessians = sum(s.token_share * HESSIAN.macs(s.in_features, 0) for s in observed.values())
        depths_of = {tap: depth for tap, (_, depth) in taps.items()}
        prepared = _transforming(plan, block, depths_of, weights)
        extra = sum(work.token_macs for work in prepared)
        float32 = sum(work.token_macs32 for work in prepared)
        searching += sum(work.macs32 for work in prepared)
        float32 += sum(_macs(block, tap, from_float=False) for tap in taps)
        if index <= last_with_float:
            floats = {row.spec.tap: taps[row.spec.tap] for row in block if _uses_float(row)}
            if not diverged:  # the float model's first input is the input itself
                for tap in list(taps)[:1] if true_sequential else list(taps):
                    floats.pop(tap, None)
            diverged = diverged or bool(taps)
            to_end = diverged and index < last_with_float
            macs += way.macs([depth for _, depth in floats.values()], to_end)
            float32 += sum(_macs(block, tap, from_float=True) for tap in floats)
        seconds = (macs + extra) * rates.mac
        seconds += hessians * rates.hessian + float32 * rates.mac32
        per_token += seconds * (patches if stage.per_patch else 1)
    solving = sum(_solving(group, rates) for group in _by_input(calibrated))
    sizes = [(r.spec.in_features, r.spec.out_features) for r in multiplied if r.adapter_bytes]
    searching += sum(adapter_macs(*size) for size in sizes)
    return solving + searching * rates.mac32, per_token


@dataclass(frozen=True)
class _Way:
    """The way of a state through a block."""

    weights: int
    """Number of weights of the block, those of experts by the share of the tokens they see."""
    before_experts: int
    """Number of weights before the experts; all without experts."""
    resumes: bool
    """Whether it resumes at each input instead of starting over, see `BlockRunner.run_to_tap`."""
    passes: int | None
    """Number of passes that observe all taps together; None if each tap has passes of its own."""

    def macs(self, depths: Sequence[int], to_end: bool) -> int:
        """Count multiply-adds per token.

        Args:
            depths: number of weights before each observed input.
            to_end: whether the output of the block is needed.
        """
        deepest = max(depths, default=0)
        if self.resumes:
            # Experts start over at the router.
            again = max(0, deepest - self.before_experts)
            return self.weights + again if to_end else deepest
        observing = sum(depths) if self.passes is None else self.passes * deepest
        return observing + (self.weights if to_end else 0)


def _pass_count(block: Sequence[PlanRow]) -> int:
    """Count the passes over a block that observe all its taps together."""
    groups = group_by_input([row.spec for row in block if row.step is not None])
    return len(list(observation_passes(groups, _needs(block), true_sequential=False)))


def _macs(block: Sequence[PlanRow], tap: str, *, from_float: bool) -> float:
    """Count multiply-adds per token of the statistics of a tap, besides the Hessian."""
    needs = _needs(block)
    total = 0.0
    for group in group_by_input([row.spec for row in block if row.step and row.spec.tap == tap]):
        rows = sum(spec.out_features for spec in group.linears)
        own = [s for s in group_needs(group, needs) if s.from_float_model == from_float]
        macs = sum(statistic.macs(group.in_features, rows) for statistic in own)
        total += group.linears[0].token_share * macs
    return total


def _transforming(
    plan: Plan, block: Sequence[PlanRow], depths: Mapping[str, int], weights: int
) -> list[TransformWork]:
    """Count the operations of the transforms of a block.

    Args:
        plan: the plan.
        block: rows of the block.
        depths: number of weights before each observed input of the block, by tap.
        weights: number of weights of the block.
    """
    rows = {row.name: row for row in block}
    of_transform: dict[Transform, list[GroupSize]] = {}
    for planned in plan.transforms:
        if not planned.reason and rows.keys() & set(planned.linears):
            size = _group_size(planned, rows, depths)
            of_transform.setdefault(planned.transform, []).append(size)
    deepest = max(depths.values(), default=0)
    return [step.work(groups, deepest, weights) for step, groups in of_transform.items()]


def _group_size(
    planned: PlannedTransform, rows: Mapping[str, PlanRow], depths: Mapping[str, int]
) -> GroupSize:
    first = rows[planned.linears[0]].spec
    readers = [rows[name] for name in planned.linears if rows[name].step is not None]
    weights = sum(row.spec.weights for row in readers)
    return GroupSize(first.in_features, weights, depths[first.tap])


def _needs(block: Sequence[PlanRow]) -> Needs:
    return {row.name: row.step.statistics for row in block if row.step is not None}


def _uses_float(row: PlanRow) -> bool:
    return row.step is not None and row.step.uses_float_model


def _backward(plan: Plan) -> float:
    """Count multiply-adds per token of a forward pass, and of a backward pass of the decoder."""
    family, unit = family_of(plan.config), plan.config.vision.merge_unit
    passes = {"decoder": 2, "head": 0}
    total = 0.0
    for row in plan.rows:
        if row.spec.part in _UNREACHED:
            continue
        per_token = unit if family.stage(row.spec.stage).per_patch else 1
        weights = row.spec.token_share * row.spec.weights
        total += passes.get(row.spec.part, 1) * per_token * weights
    return total


def _by_input(rows: Sequence[PlanRow]) -> Iterable[list[PlanRow]]:
    """Group layers that share an input."""
    inputs: dict[Hashable, list[PlanRow]] = {}
    for row in rows:
        key = row.spec.stage, row.spec.block, row.spec.tap, row.spec.expert
        inputs.setdefault(key, []).append(row)
    return inputs.values()


def _solving(rows: Sequence[PlanRow], rates: Probe) -> float:
    """Estimate the seconds that the solvers take for layers that share an input."""
    seconds, factors = 0.0, set[Hashable]()
    for row in rows:
        if row.step is None:
            continue
        work = row.step.work(row.spec.in_features, row.spec.out_features)
        macs = work.macs + (0 if work.factor in factors else work.factor_macs)
        factors.add(work.factor)
        seconds += rates.column * work.columns + rates.solve_mac * macs
        seconds += rates.search * work.searched
    return seconds


def _probe_work(width: int) -> Work:
    """Count the operations of a layer that `_solver` times."""
    return GPTQStep(QuantScheme(4, 128)).work(width, width)


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
