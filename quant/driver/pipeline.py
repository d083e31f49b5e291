"""The verbs of quantization: quantize a model in place, write it, load it back."""

from collections.abc import Sequence

from ...calib.token_weights import find_token_weights
from ...model.processing.inputs import Prompt
from ...model.qwen_vl import QwenVL
from ..checkpoint.loading import is_quantized, load_quantized, open_model, resolve_folder
from ..checkpoint.saving import check_format, save_quantized
from ..plan.coverage import check_pictures
from ..plan.plan import make_plan
from ..recipe.recipe import Recipe
from ..targets import quantized_layers
from .layer_solver import Progress, QuantizationRun
from .padding import pad_model_
from .report import CalibrationRecord, QuantReport

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
    run = QuantizationRun(model, recipe, plan, model.device, on_progress)
    record = None
    seen = run.seen(prompts)
    run.round([row for row in plan.quantized if row not in seen])
    if recipe.needs_calibration:
        if recipe.needs_gradient:
            run.on_progress(len(run.layers), len(run.rows), "token weights by gradient")
        weights = find_token_weights(recipe.calibration.token_weights, model, prompts)
        record = CalibrationRecord.of(prompts, weights)
        run.calibrate(prompts, weights)
    return run.report(record)
