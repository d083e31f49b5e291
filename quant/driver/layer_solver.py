"""Quantize the layers of a block: transforms, then GPTQ, GPTAQ or rounding per tap group."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...calib.activation_store import ActivationStore, BlockSource
from ...calib.block_runner import TokenWeightFn
from ...calib.observers import CrossMoment, Hessian
from ...calib.sequential import BlockResult, CalibrationBlock, CalibrationPass, Resume
from ...calib.tap_groups import TapGroup
from ...common.distributed import SINGLE_PROCESS, Communicator, Message, distribute
from ...model.processing.inputs import Prompt
from ...model.qwen_vl import QwenVL
from ..kernels.bf16_linear import select_syrk
from ..methods.affine import QuantizedWeight, choose_input_scale
from ..methods.gptaq import asymmetric_target
from ..methods.gptq import gptq_prepared
from ..methods.layer_error import relative_error
from ..methods.prepared_hessian import PreparedHessian, prepare_hessian
from ..methods.rtn import rtn
from ..plan.plan import Plan, PlanRow
from ..recipe.recipe import Recipe
from ..recipe.steps import Step
from ..runtime.kernel_selection import accelerate_layers_
from ..runtime.unpacked_linear import UnpackedLinear
from ..targets import put_module, put_unpacked, weight_of
from .report import CalibrationRecord, LayerReport, QuantReport, check_fallback
from .transforms import BlockTransforms

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Called with the number of finished layers, the total, and a line about the last one."""


class QuantizationRun:
    """State of one quantization: the model, the reports so far, and the layers solved last.

    Solved layers replace the float ones in the model at once, as `UnpackedLinear`, because the
    layers after them are calibrated on their outputs. The drivers loop over the blocks; after each
    one they write its layers to disk (`blockwise.py`) or pack them for inference (`pipeline.py`).
    """

    def __init__(
        self,
        model: QwenVL,
        recipe: Recipe,
        plan: Plan,
        device: torch.device,
        on_progress: Progress | None = None,
        comm: Communicator = SINGLE_PROCESS,
    ) -> None:
        """Start with no layer solved.

        Args:
            model: padded as the plan says.
            recipe: the recipe.
            plan: of the recipe and the model.
            device: of the blocks while they are solved.
            on_progress: see `Progress`.
            comm: processes that share the work; each of them holds every solved layer.
        """
        self.comm = comm
        self.model, self.recipe, self.plan, self.device = model, recipe, plan, device
        accelerate_layers_(model, device)
        self.rows = {row.name: row for row in plan.quantized}
        self.layer_reports: dict[str, LayerReport] = {}
        """Reports of the finished layers by name."""
        self.solved: dict[str, UnpackedLinear] = {}
        """Layers that are solved but neither written nor packed yet, by name."""
        self._warned_float16 = False
        self._on_progress: Progress = on_progress or (lambda done, total, detail: None)
        self.transforms = BlockTransforms(model, plan, device)
        solver_rows = [row for row in plan.quantized if row.step and row.step.solves]
        self._rows_to_solve = sum(row.spec.out_features for row in solver_rows)

    def show_progress(self, detail: str) -> None:
        """Report a line of progress with the number of finished layers."""
        self._on_progress(len(self.layer_reports), len(self.rows), detail)

    def calibrated_rows(self, prompts: Sequence[Prompt]) -> list[PlanRow]:
        """List the layers that calibration samples reach; the others are rounded without inputs.

        Samples without images never reach the vision tower.
        """
        if not self.recipe.needs_calibration:
            return []
        has_images = any(prompt.visuals for prompt in prompts)
        unreached = () if has_images else self.plan.tower
        return [row for row in self.rows.values() if row not in unreached]

    def calibration_pass(
        self,
        prompts: Sequence[Prompt],
        token_weights: TokenWeightFn,
        *,
        blocks: BlockSource | None = None,
        store: ActivationStore | None = None,
        resume: Resume | None = None,
    ) -> CalibrationPass:
        """Prepare the pass of the samples over the blocks with calibrated layers.

        Args:
            prompts: with their answers.
            token_weights: see `CalibrationPass`.
            blocks: see `CalibrationPass`.
            store: see `CalibrationPass`.
            resume: see `CalibrationPass`.

        Raises:
            ValueError: there are no prompts.
        """
        rows = self.calibrated_rows(prompts)
        return CalibrationPass(
            self.model,
            prompts,
            [row.spec for row in rows],
            true_sequential=self.recipe.calibration.true_sequential,
            token_weights=token_weights,
            asymmetric=[row.name for row in rows if row.step and row.step.asymmetric_calibration],
            syrk=select_syrk(self.device),
            blocks=blocks,
            store=store,
            resume=resume,
            comm=self.comm,
        )

    @torch.no_grad()
    def quantize_block(self, block: CalibrationBlock) -> BlockResult:
        """Transform and quantize a loaded block, and run the samples through it.

        Raises:
            ValueError: activations are not finite, no sample reaches a layer, or too many rows
                fell back to rounding.
        """
        if block.groups:
            for transform in self.transforms.prepare(block):
                planned = transform.planned
                self.show_progress(f"{planned.source} {planned.transform.method}")
        for group, hessian, cross in block.statistics():
            self._solve_group(group, hessian, cross)
        result = block.finish()
        for size in result.largest:
            self._check_activations(f"the output of {block.path}", size)
        return result

    def _solve_group(self, group: TapGroup, hessian: Hessian, cross: CrossMoment | None) -> None:
        """Quantize the layers of a tap group and put them into the model.

        Args:
            group: layers that share an input.
            hessian: of that input.
            cross: how far the input is from the float model's; required for gptaq.

        Raises:
            ValueError: the input is not finite, or too many rows fell back to rounding.
        """
        self._check_activations(
            f"the input of {group.linears[0].name}", hessian.input_range.largest
        )

        inputs = _InputStatistics(group, hessian, cross)

        def quantize(row: PlanRow) -> Message:
            assert row.step is not None
            if row.step.solves:
                return self._solve_layer(row, inputs)
            return self._round_layer(row, hessian)

        # Each rank quantizes some of the layers and broadcasts them.
        rows = [self.rows[spec.name] for spec in group.linears]
        for row, message in distribute(self.comm, rows, quantize):
            # The rest of the block runs on this layer: dequantize it once, not for every sample.
            self._put(row, message, self.model.dtype)

    def round_layers(self, rows: Sequence[PlanRow]) -> None:
        """Round layers to nearest, without calibration, and put them into the model."""
        for row, message in distribute(self.comm, rows, self._round_layer):
            self._put(row, message)

    def pack_layers(self) -> None:
        """Replace the layers in `solved` by `QuantLinear`, for inference."""
        while self.solved:
            name, layer = self.solved.popitem()
            put_module(self.model, name, layer.pack())

    def report(self, calibration: CalibrationRecord | None) -> QuantReport:
        """Build the report of the finished run."""
        return QuantReport(
            self.recipe,
            self.plan,
            tuple(self.layer_reports[name] for name in self.rows),
            calibration,
            tuple(self.transforms.reports),
            frozenset(self.transforms.changed),
        )

    def _check_activations(self, name: str, largest: float) -> None:
        """Refuse activations that are not finite; warn once of those that float16 cannot hold.

        An infinite input would make its Hessian and all later layers NaN. float16 does not matter
        to a calibration in bf16, but engines may run the checkpoint in float16.
        """
        if not math.isfinite(largest):
            raise ValueError(
                f"{name} is not finite for a calibration sample: activations overflow in "
                f"{self.model.dtype}; calibrate in bf16 or fp32, or look at the samples"
            )
        if largest > torch.finfo(torch.float16).max and not self._warned_float16:
            self._warned_float16 = True
            logger.warning(
                "%s reaches %.0f, more than float16 holds (65504); run this model in bfloat16",
                name,
                largest,
            )

    def _round_layer(self, row: PlanRow, hessian: Hessian | None = None) -> Message:
        """Round one layer; with a Hessian its error is measured as well."""
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
        except ValueError as failure:
            raise ValueError(f"{row.name}: {failure}") from None
        detail = f"{row.name} rounded" + ("" if error is None else f", error {error:.2e}")
        return _message(weight, LayerReport(row, None, tokens, error), detail)

    def _solve_layer(self, row: PlanRow, inputs: "_InputStatistics") -> Message:
        """Solve one layer with GPTQ. GPTAQ is GPTQ towards another weight, see `gptaq.py`."""
        step, original, hessian = row.step, weight_of(self.model, row.spec), inputs.hessian
        assert step is not None
        target, shift = original, None
        try:
            prepared = inputs.prepare(step)
            if step.asymmetric_calibration:
                if prepared.factor is not None:  # without one, the layer is rounded
                    deviation = inputs.deviation(row, original)
                    target = asymmetric_target(
                        original, deviation, prepared, strength=step.strength
                    )
                shift = relative_change(original, target)
            result = gptq_prepared(
                target,
                prepared,
                step.scheme,
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

    def _put(self, row: PlanRow, message: Message, dtype: torch.dtype | None = None) -> None:
        """Put a quantized layer into the model and record its report.

        Args:
            row: of the layer.
            message: from the rank that quantized it.
            dtype: of the layer's inputs; None if the layer will not run.
        """
        assert row.step is not None
        tensors = {name: tensor.to(self.device) for name, tensor in message.tensors.items()}
        weight = QuantizedWeight(scheme=row.step.scheme, **tensors)
        self.solved[row.name] = put_unpacked(self.model, row.spec, weight, dtype)
        value = message.value
        if value["warning"]:
            logger.warning("%s: %s", row.name, value["warning"])
        self.layer_reports[row.name] = LayerReport.from_dict(value["report"], row)
        self.show_progress(value["detail"])
        # After every layer, not at the end: the hours that remain would be spent for nothing.
        check_fallback(list(self.layer_reports.values()), self._rows_to_solve)


class _InputStatistics:
    """Statistics of the shared input of a group's layers, and the factor of the last layer."""

    def __init__(self, group: TapGroup, hessian: Hessian, cross: CrossMoment | None) -> None:
        self.group, self.hessian, self.cross = group, hessian, cross
        self._prepared: tuple[tuple[float, bool], PreparedHessian] | None = None

    def prepare(self, step: Step) -> PreparedHessian:
        """Return the Hessian with the factor for a step; layers of equal steps share it.

        Raises:
            ValueError: see `prepare_hessian`.
        """
        key = step.damp_percent, step.act_order
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = None  # frees the other factor first
            prepared = prepare_hessian(
                self.hessian.values, damp_percent=step.damp_percent, act_order=step.act_order
            )
            self._prepared = key, prepared
        return self._prepared[1]

    def deviation(self, row: PlanRow, weight: Tensor) -> Tensor:
        """Return `W (X~ - X) X'` of one of the layers, see `asymmetric_target`."""
        assert self.cross is not None
        first_row = 0
        for spec in self.group.linears:
            if spec == row.spec:
                break
            first_row += spec.out_features
        return self.cross.of_outputs(weight, first_row)


def _message(
    weight: QuantizedWeight, report: LayerReport, detail: str, warning: str | None = None
) -> Message:
    """Serialize a quantized layer for the other ranks."""
    value = {"report": report.to_dict(), "detail": detail, "warning": warning}
    tensors = {
        name: tensor
        for name in ("integers", "scales", "zero_points", "group_index", "input_scale")
        if (tensor := getattr(weight, name)) is not None
    }
    return Message(value, tensors)


def relative_change(original: Tensor, changed: Tensor) -> float:
    """Compute the norm of the difference over the norm of the original; 0 without a difference."""
    before = original.float()
    change = float((changed.float() - before).norm())
    return change / float(before.norm()) if change else 0.0


def with_input_scale(weight: QuantizedWeight, hessian: Hessian) -> QuantizedWeight:
    """Add the scale of a static int8 input; it covers the range that the Hessian has seen.

    Raises:
        ValueError: the inputs are too large for any scale.
    """
    if weight.scheme.activations != "static":
        return weight
    scale = choose_input_scale(hessian.input_range.largest)
    return replace(weight, input_scale=scale.to(weight.scales.device))
