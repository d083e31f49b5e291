"""Quantize the layers of a block: transforms, then the method of each layer, per tap group."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...calib.activation_store import ActivationStore, BlockSource
from ...calib.block_runner import TokenWeightFn
from ...calib.sequential import BlockResult, CalibrationBlock, CalibrationPass, Resume
from ...calib.statistics import InputRounding
from ...calib.tap_statistics import GroupStatistics
from ...common.distributed import SINGLE_PROCESS, Communicator, Message, distribute
from ...model.processing.inputs import Prompt
from ...model.qwen_vl import QwenVL
from ...model.token_table import rows_like
from ..kernels.bf16_linear import select_syrk
from ..methods.layer_inputs import LayerInputs, SharedInput
from ..methods.low_rank import LowRank
from ..plan.plan import Plan, PlanRow
from ..recipe.recipe import Recipe
from ..runtime.adapter import LowRankAdapter
from ..runtime.compressed_linear import CompressedLayer
from ..runtime.embedding import QuantEmbedding
from ..runtime.kernel_selection import accelerate_layers_
from ..steps.adapter import quantized_part, solve_with_adapter
from ..steps.step import Solved, Step
from ..targets import put_calibrating, put_module, weight_of
from .experts import EXPERT_TOKENS
from .kv_calibration import CalibratedLayer, warn_of_outliers
from .report import CalibrationRecord, LayerReport, QuantReport, check_fallback
from .rounding import TunedBlock, can_tune, tune_block
from .scaling.transforms import BlockTransforms
from .sparsity import share_of_zeros

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Called with the number of finished layers, the total, and a line about the last one."""


class QuantizationRun:
    """State of one quantization: the model, the reports so far, and the layers solved last.

    Solved layers replace the float ones in the model at once, because the layers after them are
    calibrated on their outputs. The drivers loop over the blocks; after each one they write its
    layers to disk (`blockwise.py`) or pack them for inference (`pipeline.py`).
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
        self.cache_layers: dict[int, CalibratedLayer] = {}
        """Calibrated scales of the KV cache, by index of the decoder layer."""
        self.measured: CalibratedLayer | None = None
        """Those of the last block, if they are not written yet."""
        self.tuned: dict[str, TunedBlock] = {}
        """Records of the blocks whose rounding was tuned, by path."""
        self.solved: dict[str, CompressedLayer] = {}
        """Layers that are solved but neither written nor packed yet, by name."""
        self._warned_float16 = False
        self._fused_ranges: dict[str, float] = {}
        if recipe.recover is not None and comm.world_size > 1:
            raise ValueError(
                f"recover with {comm.world_size} processes; allowed: one; start it without torchrun"
            )
        if self._tunes and not any(map(can_tune, plan.quantized)):
            raise ValueError(
                "recover: params rounding finds no layer of integers that has no mask and is no "
                "expert; allowed: recipes with such layers"
            )
        self._on_progress: Progress = on_progress or (lambda done, total, detail: None)
        self.transforms = BlockTransforms(model, plan, device)
        falling = [row for row in plan.quantized if row.step and row.step.falls_back]
        self._rows_to_solve = sum(row.spec.out_features for row in falling)

    @property
    def _tunes(self) -> bool:
        """Whether the rounding of blocks is tuned."""
        return self.recipe.recover is not None and self.recipe.recover.is_blockwise

    def show_progress(self, detail: str) -> None:
        """Report a line of progress with the number of finished layers."""
        self._on_progress(len(self.layer_reports), len(self.rows), detail)

    def calibrated_rows(self, prompts: Sequence[Prompt]) -> list[PlanRow]:
        """List the layers that calibration samples reach; the others have no statistics.

        Samples without images never reach the vision tower. The token embedding has no input, and
        no sample passes the module for multi-token prediction.
        """
        if not self.recipe.needs_calibration:
            return []
        has_images = any(prompt.visuals for prompt in prompts)
        unreached = {"embedding", "mtp"} if has_images else {"embedding", "mtp", "tower"}
        return [row for row in self.rows.values() if row.spec.part not in unreached]

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
            needs={row.name: row.step.statistics for row in rows if row.step},
            roundings=_roundings(rows),
            syrk=select_syrk(self.device),
            blocks=blocks,
            store=store,
            resume=resume,
            comm=self.comm,
            all_experts=self.recipe.calibration.all_experts,
            measures_cache=self.recipe.kv_cache is not None,
            keeps_float=self._tunes,
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
        for statistics in block.statistics():
            self._solve_group(statistics)
            del statistics  # frees it before the next group is observed
        if self._tunes and block.groups and (tuned := tune_block(self, block)):
            self.tuned[block.path] = tuned
        if self.recipe.kv_cache is not None and (measured := block.cache_range()):
            self.measured = self.cache_layers[measured.layer] = CalibratedLayer.of(measured)
        result = block.finish()
        for size in result.largest:
            self._check_activations(f"the output of {block.path}", size)
        return result

    def _solve_group(self, statistics: GroupStatistics) -> None:
        """Quantize the layers of a tap group and put them into the model.

        Raises:
            ValueError: the input is not finite, or too many rows fell back to rounding.
        """
        specs = statistics.group.linears
        largest = statistics.hessian.input_range.largest
        self._check_activations(f"the input of {specs[0].name}", largest)
        shared, inputs, first_row = SharedInput(statistics.observers), {}, 0
        for spec in specs:
            inputs[spec.name] = LayerInputs(shared, first_row)
            first_row += spec.out_features

        def quantize(row: PlanRow) -> Message:
            return self._solve_layer(row, inputs[row.name])

        # Each rank quantizes some of the layers and broadcasts them.
        rows = [self.rows[spec.name] for spec in specs]
        for row in rows:
            self._fused_range(row)
        for row, message in distribute(self.comm, rows, quantize):
            # The rest of the block runs on this layer: dequantize it once, not for every sample.
            self._put(row, message, self.model.dtype)

    def round_layers(self, rows: Sequence[PlanRow]) -> None:
        """Quantize layers that no calibration sample reaches, and put them into the model."""
        for row in rows:
            self._fused_range(row)
        for row, message in distribute(self.comm, rows, self._solve_layer):
            self._put(row, message)

    def pack_layers(self) -> None:
        """Replace the layers in `solved` by their form for inference."""
        while self.solved:
            name, layer = self.solved.popitem()
            put_module(self.model, name, layer.for_inference())

    def report(self, calibration: CalibrationRecord | None) -> QuantReport:
        """Build the report of the finished run."""
        few = [name for name, layer in self.layer_reports.items() if "undersampled" in layer.values]
        if few:
            logger.warning(
                "%d layers of experts see fewer than %d calibration tokens and were rounded, first "
                "%s; the report names all; use more samples",
                len(few),
                EXPERT_TOKENS,
                few[0],
            )
        cache_layers = tuple(self.cache_layers[index] for index in sorted(self.cache_layers))
        warn_of_outliers(cache_layers)
        return QuantReport(
            self.recipe,
            self.plan,
            tuple(self.layer_reports[name] for name in self.rows),
            calibration,
            tuple(self.transforms.reports),
            frozenset(self.transforms.changed),
            cache_layers,
            tuned=tuple(self.tuned.values()),
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

    def _fused_range(self, row: PlanRow) -> float | None:
        """Return the largest magnitude in the layers that engines fuse with this one.

        They share the scale of the whole matrix, if the scheme has one. It is found when the first
        of them is reached: a solved layer has no float weight any more.
        """
        if not row.fused:
            return None
        if row.name not in self._fused_ranges:
            rows = (self.rows[name] for name in row.fused)
            steps = ((each.step, weight_of(self.model, each.spec)) for each in rows)
            parts = (quantized_part(step, weight) for step, weight in steps if step is not None)
            largest = max(float(part.abs().max()) for part in parts)
            self._fused_ranges |= dict.fromkeys(row.fused, largest)
        return self._fused_ranges[row.name]

    def _solve_layer(self, row: PlanRow, inputs: LayerInputs | None = None) -> Message:
        """Quantize one layer; without inputs if no calibration sample reaches it."""
        step, original = row.step, weight_of(self.model, row.spec)
        assert step is not None
        tokens = 0 if inputs is None else inputs.hessian.tokens
        fused_range = self._fused_range(row)
        try:
            if row.spec.expert is not None and inputs is not None and tokens < EXPERT_TOKENS:
                solved = _round_expert(step, original, inputs, fused_range)
            else:
                clip = row.name in self.transforms.clipped
                options: Any = {"clip": clip, "fused_range": fused_range}
                solved = solve_with_adapter(step, original, inputs, **options)
            weight = solved.weight
            if inputs is not None:
                weight = weight.with_input_range(inputs.hessian.input_range.largest)
        except ValueError as error:
            seen = f" ({tokens} calibration tokens)" if tokens else ""
            raise ValueError(f"{row.name}{seen}: {error}") from None
        values = dict(solved.values) if inputs is None else {"tokens": tokens, **solved.values}
        if step.mask is not None:
            values["zeros"] = share_of_zeros(weight)
        detail = f"{row.name} {solved.summary}"
        tensors = weight.tensors() | (solved.adapter.tensors() if solved.adapter else {})
        return _message(tensors, LayerReport(row, values), detail, solved.warning)

    def _put(self, row: PlanRow, message: Message, dtype: torch.dtype | None = None) -> None:
        """Put a quantized layer into the model and record its report.

        Args:
            row: of the layer.
            message: from the rank that quantized it.
            dtype: of the layer's inputs; None if the layer will not run.
        """
        assert row.step is not None
        tensors = {name: tensor.to(self.device) for name, tensor in message.tensors.items()}
        part = LowRank.take(tensors)
        weight = row.step.scheme.weight(tensors)
        if row.spec.part == "embedding":  # nothing runs on it before it is packed
            self.solved[row.name] = QuantEmbedding(weight, rows_like(self.model.model.embed_tokens))
        else:
            layer = put_calibrating(self.model, row.spec, weight, dtype)
            layer.adapter = None if part is None else LowRankAdapter(part)
            self.solved[row.name] = layer
        value = message.value
        if value["warning"]:
            logger.warning("%s: %s", row.name, value["warning"])
        self.layer_reports[row.name] = LayerReport.from_dict(value["report"], row)
        self.show_progress(value["detail"])
        # After every layer, not at the end: the hours that remain would be spent for nothing.
        check_fallback(list(self.layer_reports.values()), self._rows_to_solve)


def _roundings(rows: Sequence[PlanRow]) -> dict[str, InputRounding]:
    """Return how layers round their inputs, by name."""
    roundings = {row.name: row.step.scheme.calibration_rounding() for row in rows if row.step}
    return {name: rounding for name, rounding in roundings.items() if rounding is not None}


def _round_expert(
    step: Step, weight: Tensor, inputs: LayerInputs, fused_range: float | None
) -> Solved:
    """Round an expert that too few tokens reach for a solver, and say so."""
    rounded, tokens = step.round(weight, fused_range=fused_range), inputs.hessian.tokens
    reason = f"{tokens} calibration tokens reach this expert, fewer than {EXPERT_TOKENS}: rounded"
    values: dict[str, Any] = {"undersampled": reason}
    if tokens:
        error = inputs.error(weight, rounded.dequantize())
        values = dict.fromkeys(("error", "rtn_error", "final_error"), error) | values
    return Solved(rounded, values, "rounded, few tokens")


def _message(
    tensors: Mapping[str, Tensor], report: LayerReport, detail: str, warning: str | None = None
) -> Message:
    """Serialize a compressed layer and its adapter for the other ranks."""
    value = {"report": report.to_dict(), "detail": detail, "warning": warning}
    return Message(value, tensors)
