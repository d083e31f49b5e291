"""The verbs of quantization: quantize a model in place, write it, load it back."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from ..calib.observers import CrossMoment, Hessian
from ..calib.sequential import BlockView, TapGroup, run_sequential
from ..calib.token_weights import find_token_weights
from ..model.inputs import Prompt
from ..model.qwen_vl import QwenVL
from .affine import QuantizedWeight, choose_input_scale
from .asymmetric import asymmetric_target
from .coverage import check_pictures, tower_rows
from .error import relative_error
from .gptq import gptq
from .kernels.dense import gram_on
from .loading import is_quantized, load_quantized, open_model, resolve_folder
from .padding import pad_model_
from .plan import Plan, PlanRow, make_plan
from .recipe import Recipe
from .report import CalibrationRecord, LayerReport, QuantReport, check_fallback
from .rtn import rtn
from .saving import check_format, save_quantized
from .targets import put_quantized, quantized_layers, weight_of
from .transforms import BlockTransforms

logger = logging.getLogger(__name__)

__all__ = [
    "Progress",
    "check_format",
    "is_quantized",
    "load_quantized",
    "make_plan",
    "open_model",
    "quantize_",
    "resolve_folder",
    "save_quantized",
]

Progress = Callable[[int, int, str], None]
"""Called with layers done, layers in all, and a line about the last one."""


def quantize_(
    model: QwenVL,
    recipe: Recipe,
    prompts: Sequence[Prompt] = (),
    *,
    on_progress: Progress | None = None,
) -> QuantReport:
    """Replace linear layers of a model by quantized ones, as a recipe says; in place.

    Inner widths that no kernel takes are padded first, and the model's config then says so. After
    an error the model may be half quantized and is of no further use.

    Args:
        model: in any float dtype, on any device.
        recipe: what to quantize and how.
        prompts: calibration samples with their answers; may be empty if every step rounds only.
        on_progress: see `Progress`.

    Raises:
        ValueError: the plan does not fit the model, the model is quantized already, there are no
            prompts, none of them has a picture though the vision tower is calibrated, none suits
            gradient token weights, activations overflow, or GPTQ falls back to rounding on over
            5 % of the rows.
    """
    plan = make_plan(model.config, recipe)
    if done := quantized_layers(model):
        raise ValueError(f"{next(iter(done))} is quantized already; start from the original model")
    pictures = not prompts or any(prompt.visuals for prompt in prompts)
    if recipe.needs_calibration:
        check_pictures(plan, present=pictures)
    pad_model_(model, plan.padding)
    run = _Run(model, plan, on_progress or (lambda done, total, detail: None))
    record = None
    if recipe.needs_calibration:
        if recipe.needs_gradient:
            run.on_progress(0, len(run.rows), "token weights by gradient")
        weights = find_token_weights(recipe.calibration.token_weights, model, prompts)
        record = CalibrationRecord.of(prompts, weights)
        unseen = () if pictures else tower_rows(plan)
        for row in unseen:
            run.round(row)
        run_sequential(
            model,
            prompts,
            [row.spec for row in plan.quantized if row not in unseen],
            run.solve,
            true_sequential=recipe.calibration.true_sequential,
            token_weights=weights,
            asymmetric=[row.name for row in plan.quantized if row.step and row.step.asymmetric],
            prepare=run.prepare if plan.transforms else None,
            gram=gram_on(model.device),
        )
    else:
        for row in plan.quantized:
            run.round(row)
    layers = tuple(run.layers[row.name] for row in plan.quantized)
    transforms, changed = tuple(run.transforms.reports), frozenset(run.transforms.changed)
    return QuantReport(recipe, plan, layers, record, transforms, changed)


class _Run:
    """Layers on their way from float to quantized."""

    def __init__(self, model: QwenVL, plan: Plan, on_progress: Progress) -> None:
        self.model = model
        self.rows = {row.name: row for row in plan.quantized}
        self.layers: dict[str, LayerReport] = {}
        self.on_progress = on_progress
        self.transforms = BlockTransforms(model, plan)
        solved = [row for row in plan.quantized if row.step and row.step.solves]
        self.rows_to_solve = sum(row.spec.out_features for row in solved)

    def prepare(self, view: BlockView) -> None:
        """Run the transforms of a block."""
        for done in self.transforms.prepare(view):
            detail = f"{done.planned.source} {done.planned.transform.method}"
            self.on_progress(len(self.layers), len(self.rows), detail)

    def solve(self, group: TapGroup, hessian: Hessian, cross: CrossMoment | None) -> None:
        """Quantize the layers of a group as their steps say."""
        for spec in group.linears:
            row = self.rows[spec.name]
            assert row.step is not None
            if row.step.solves:
                self._gptq(row, hessian, cross)
            else:
                self.round(row, hessian)

    def round(self, row: PlanRow, hessian: Hessian | None = None) -> None:
        """Quantize one layer to the nearest level."""
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
        put_quantized(self.model, row.spec, weight)
        detail = f"{row.name} rounded" + ("" if error is None else f", error {error:.2e}")
        self._done(LayerReport(row, None, tokens, error), detail)

    def _gptq(self, row: PlanRow, hessian: Hessian, cross: CrossMoment | None) -> None:
        """Quantize one layer with GPTQ, or GPTAQ if its step says so."""
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
        put_quantized(self.model, row.spec, weight)
        detail = f"{row.name} error {result.final_error:.2e}"
        if shift is not None:
            detail += f", target moved by {shift:.1%}"
        if result.fallback:
            logger.warning("%s: %s", row.name, result.fallback)
            detail += f" ({result.fallback})"
        self._done(LayerReport(row, result, hessian.tokens, target_shift=shift), detail)
        # Here and not at the end: the rest of the run would be for nothing.
        check_fallback(list(self.layers.values()), self.rows_to_solve)

    def _done(self, layer: LayerReport, detail: str) -> None:
        self.layers[layer.row.name] = layer
        self.on_progress(len(self.layers), len(self.rows), detail)


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
