"""How the layers of a plan are quantized, one tap group after another."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...calib.block_runner import TokenWeightFn
from ...calib.observers import CrossMoment, Hessian
from ...calib.sequential import BlockResult, BlockView, Leave, TapGroup, run_sequential
from ...common.distributed import SINGLE_PROCESS, Communicator, Message, distribute
from ...model.processing.inputs import Prompt
from ...model.qwen_vl import QwenVL
from ..kernels.bf16_linear import gram_on
from ..methods.affine import QuantizedWeight, choose_input_scale
from ..methods.gptaq import asymmetric_target
from ..methods.gptq import gptq
from ..methods.layer_error import relative_error
from ..methods.rtn import rtn
from ..plan.coverage import tower_rows
from ..plan.plan import Plan, PlanRow
from ..recipe.recipe import Recipe
from ..runtime.kernel_selection import speed_layers_
from ..runtime.linear import QuantLinear
from ..targets import put_quantized, weight_of
from .report import CalibrationRecord, LayerReport, QuantReport, check_fallback
from .transforms import BlockTransforms

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Called with layers done, layers in all, and a line about the last one."""


class QuantizationRun:
    """Layers of a model on their way from float to quantized."""

    def __init__(
        self,
        model: QwenVL,
        recipe: Recipe,
        plan: Plan,
        device: torch.device,
        on_progress: Progress | None = None,
        comm: Communicator = SINGLE_PROCESS,
    ) -> None:
        """Begin with no layer done.

        Args:
            model: padded as the plan says.
            recipe: what to do.
            plan: of the recipe and the model.
            device: where its blocks are when they are solved.
            on_progress: see `Progress`.
            comm: who shares the work; every process gets every layer.
        """
        self.comm = comm
        self.model, self.recipe, self.plan, self.device = model, recipe, plan, device
        speed_layers_(model, device)
        self.rows = {row.name: row for row in plan.quantized}
        self.layers: dict[str, LayerReport] = {}
        self._held: list[QuantLinear] = []
        self._warned = False
        self.on_progress: Progress = on_progress or (lambda done, total, detail: None)
        self.transforms = BlockTransforms(model, plan, device)
        solved = [row for row in plan.quantized if row.step and row.step.solves]
        self.rows_to_solve = sum(row.spec.out_features for row in solved)

    def calibrate(
        self,
        prompts: Sequence[Prompt],
        token_weights: TokenWeightFn,
        *,
        leave: Leave | None = None,
        **where: Any,
    ) -> None:
        """Run samples through the model and quantize what they reach.

        Layers of the vision tower stay as they are if no sample has a picture.

        Args:
            prompts: with their answers.
            token_weights: see `run_sequential`.
            leave: see `run_sequential`.
            where: `blocks`, `store` and `resume` of it.
        """
        seen = self.seen(prompts)

        def drop_dequantized(passed: BlockResult) -> None:
            while self._held:
                self._held.pop().drop_dequantized()
            for size in passed.largest:
                self._check_size(f"what comes out of {passed.block}", size)
            if leave is not None:
                leave(passed)

        run_sequential(
            self.model,
            prompts,
            [row.spec for row in seen],
            self.solve,
            true_sequential=self.recipe.calibration.true_sequential,
            token_weights=token_weights,
            asymmetric=[row.name for row in seen if row.step and row.step.asymmetric],
            prepare=self.prepare if self.transforms.planned else None,
            gram=gram_on(self.device),
            leave=drop_dequantized,
            comm=self.comm,
            **where,
        )

    def seen(self, prompts: Sequence[Prompt]) -> list[PlanRow]:
        """The layers that calibration samples reach."""
        if not self.recipe.needs_calibration:
            return []
        pictures = any(prompt.visuals for prompt in prompts)
        unseen = () if pictures else tower_rows(self.plan)
        return [row for row in self.rows.values() if row not in unseen]

    def report(self, calibration: CalibrationRecord | None) -> QuantReport:
        """What was done, once it is."""
        return QuantReport(
            self.recipe,
            self.plan,
            tuple(self.layers[name] for name in self.rows),
            calibration,
            tuple(self.transforms.reports),
            frozenset(self.transforms.changed),
        )

    def prepare(self, view: BlockView) -> None:
        """Run the transforms of a block."""
        for done in self.transforms.prepare(view):
            detail = f"{done.planned.source} {done.planned.transform.method}"
            self.on_progress(len(self.layers), len(self.rows), detail)

    def solve(self, group: TapGroup, hessian: Hessian, cross: CrossMoment | None) -> None:
        """Quantize the layers of a group as their steps say."""
        self._check_size(f"the input of {group.linears[0].name}", hessian.extent.largest)

        def work(row: PlanRow) -> Message:
            assert row.step is not None
            if row.step.solves:
                return self._gptq(row, hessian, cross)
            return self._rounded(row, hessian)

        for row, layer in distribute(
            self.comm, [self.rows[spec.name] for spec in group.linears], work
        ):
            self._put(row, layer)
            module = self.model.get_submodule(row.name)
            assert isinstance(module, QuantLinear)
            module.cache_dequantized(self.model.dtype)
            self._held.append(module)

    def _check_size(self, what: str, largest: float) -> None:
        """Refuse activations that are not finite; say once that float16 would not hold them."""
        if not math.isfinite(largest):
            raise ValueError(
                f"{what} is not finite for a calibration sample: activations overflow in "
                f"{self.model.dtype}; calibrate in bf16 or fp32, or look at the samples"
            )
        if largest > torch.finfo(torch.float16).max and not self._warned:
            self._warned = True
            logger.warning(
                "%s reaches %.0f, and float16 ends at 65504: run this model in bfloat16, with "
                "float16 it would overflow",
                what,
                largest,
            )

    def round(self, rows: Sequence[PlanRow]) -> None:
        """Quantize layers to the nearest level."""
        for row, layer in distribute(self.comm, rows, self._rounded):
            self._put(row, layer)

    def _rounded(self, row: PlanRow, hessian: Hessian | None = None) -> Message:
        assert row.step is not None
        original = weight_of(self.model, row.spec)
        error, tokens, clipping = None, 0, None
        if hessian is not None and row.name in self.transforms.clipped:
            clipping = hessian.values
        try:
            weight = rtn(original, row.step.scheme, clipping)
            if hessian is not None:
                tokens = hessian.tokens
                error = relative_error([original], [weight.dequantize()], hessian.values)
                weight = with_input_scale(weight, hessian)
        except ValueError as error_:
            raise ValueError(f"{row.name}: {error_}") from None
        detail = f"{row.name} rounded" + ("" if error is None else f", error {error:.2e}")
        return _message(weight, LayerReport(row, None, tokens, error), detail)

    def _gptq(self, row: PlanRow, hessian: Hessian, cross: CrossMoment | None) -> Message:
        """Solve one layer with GPTQ, or GPTAQ if its step says so."""
        step, original = row.step, weight_of(self.model, row.spec)
        assert step is not None
        target, shift = original, None
        try:
            if step.asymmetric:
                assert cross is not None
                target = asymmetric_target(
                    original,
                    hessian.values,
                    cross.values,
                    strength=step.strength,
                    damp_percent=step.damp_percent,
                )
                shift = relative_change(original, target)
            result = gptq(
                target,
                hessian.values,
                step.scheme,
                damp_percent=step.damp_percent,
                act_order=step.act_order,
                block_size=step.block_size,
                scale_search=step.scale_search,
            )
            weight = with_input_scale(result.weight, hessian)
        except ValueError as error:
            raise ValueError(f"{row.name} ({hessian.tokens} calibration tokens): {error}") from None
        detail = f"{row.name} error {result.final_error:.2e}"
        if shift is not None:
            detail += f", target moved by {shift:.1%}"
        if result.fallback:
            detail += f" ({result.fallback})"
        report = LayerReport(row, result.stats, hessian.tokens, target_shift=shift)
        return _message(weight, report, detail, result.fallback)

    def _put(self, row: PlanRow, message: Message) -> None:
        """Put a layer that some process has solved into the model."""
        assert row.step is not None
        on_device = {name: tensor.to(self.device) for name, tensor in message.tensors.items()}
        put_quantized(self.model, row.spec, QuantizedWeight(scheme=row.step.scheme, **on_device))
        value = message.value
        if value["warning"]:
            logger.warning("%s: %s", row.name, value["warning"])
        self.layers[row.name] = LayerReport.from_dict(value["report"], row)
        self.on_progress(len(self.layers), len(self.rows), value["detail"])
        # Here and not at the end: the rest of the run would be for nothing.
        check_fallback(list(self.layers.values()), self.rows_to_solve)


def _message(
    weight: QuantizedWeight, report: LayerReport, detail: str, warning: str | None = None
) -> Message:
    value = {"report": report.to_dict(), "detail": detail, "warning": warning}
    tensors = {
        name: tensor
        for name in ("integers", "scales", "zero_points", "group_index", "input_scale")
        if (tensor := getattr(weight, name)) is not None
    }
    return Message(value, tensors)


def relative_change(original: Tensor, changed: Tensor) -> float:
    """Norm of the difference over the norm of the original; 0 if nothing changed."""
    before = original.float()
    change = float((changed.float() - before).norm())
    return change / float(before.norm()) if change else 0.0


def with_input_scale(weight: QuantizedWeight, hessian: Hessian) -> QuantizedWeight:
    """Add the scale of a static input, which covers all that the Hessian has seen.

    Raises:
        ValueError: the inputs are too large for any scale.
    """
    if weight.scheme.activations != "static":
        return weight
    scale = choose_input_scale(hessian.extent.largest)
    return replace(weight, input_scale=scale.to(weight.scales.device))
