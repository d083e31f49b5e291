"""Quantize a model in memory; also re-exports the functions that plan, save and load."""

from collections.abc import Sequence

from ...calib.token_weights import find_token_weights
from ...model.processing.inputs import Prompt
from ...model.qwen_vl import QwenVL
from ..checkpoint.formats.table import AUTO
from ..checkpoint.loading import is_quantized, load_quantized, open_model, resolve_folder
from ..checkpoint.saving import check_format, save_quantized
from ..plan.part_targets import spell_out_parts
from ..plan.plan import check_images, make_plan
from ..recipe.recipe import Recipe
from ..targets import compressed_layers
from .layer_solver import Progress, QuantizationRun
from .report import CalibrationRecord, QuantReport
from .visual_tokens import reduce_prompts

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


def quantize_(
    model: QwenVL,
    recipe: Recipe,
    prompts: Sequence[Prompt] = (),
    *,
    format: str = AUTO,
    on_progress: Progress | None = None,
) -> QuantReport:
    """Replace linear layers of a model by quantized ones, in place.

    Inner widths that no kernel supports are padded first, in the model and in its config. After an
    error the model may be partly quantized and must be discarded.

    Args:
        model: in any float dtype, on any device.
        recipe: which layers to quantize, and how.
        prompts: calibration samples with their answers; may be empty if every step only rounds.
            Encode them with the recipe's `max_pixels`, if it has one (`sample_processor`).
        format: checkpoint format that the report counts bytes for, see `save_quantized`.
        on_progress: see `Progress`.

    Returns:
        Errors and decisions, layer by layer; `save_quantized` needs it.

    Raises:
        ValueError: the recipe has preparations, the plan does not fit the model, the model is
            quantized already, there are no prompts, none of them has an image although the vision
            tower is calibrated, none suits gradient token weights, activations overflow, or GPTQ
            falls back to rounding on over 5 % of the rows.
    """
    if recipe.preparations:
        raise ValueError(
            f"recipe {recipe.name}: {recipe.preparations[0].method} changes the whole checkpoint, "
            "not a model in memory; use quantize with the checkpoint's folder"
        )
    if recipe.recover is not None and not recipe.recover.is_blockwise:
        raise ValueError(
            f"recover: params {', '.join(recipe.recover.params)} are trained after quantization, "
            "with samples and teachers: call recover_, or use vlpress quantize; allowed here: "
            "rounding"
        )
    recipe = spell_out_parts(recipe, model.config)
    plan = make_plan(model.config, recipe, format=format)
    if quantized := compressed_layers(model):
        raise ValueError(
            f"{next(iter(quantized))} is quantized already; start from the original model"
        )
    if recipe.needs_calibration:
        # Without any prompts `calibrate` has the better message.
        check_images(plan, present=not prompts or any(prompt.visuals for prompt in prompts))
    plan.prepare_model_(model)
    run = QuantizationRun(model, recipe, plan, model.device, on_progress)
    record = None
    calibrated = run.calibrated_rows(prompts)
    for row in plan.quantized:
        if row not in calibrated:
            run.round_layers([row])
            run.pack_layers()
    if recipe.needs_calibration:
        if recipe.vision_input.reduction is not None:
            prompts = reduce_prompts(model, recipe.vision_input.reduction, prompts)
        if recipe.needs_gradient:
            run.show_progress("token weights by gradient")
        weights = find_token_weights(recipe.calibration.token_weights, model, prompts)
        record = CalibrationRecord.of(prompts, weights)
        for block in run.calibration_pass(prompts, weights):
            with block.loaded():
                run.quantize_block(block)
                run.pack_layers()
    model.reduction = recipe.vision_input.reduction
    return run.report(record)
