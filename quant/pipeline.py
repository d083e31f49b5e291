"""The verbs of quantization: quantize a model in place, write it, load it back."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from ..calib.observers import Hessian
from ..calib.sequential import TapGroup, run_sequential
from ..model.inputs import Prompt
from ..model.qwen_vl import QwenVL
from .formats import gptq as gptq_format
from .gptq import gptq
from .loading import is_quantized, load_quantized, open_model, resolve_folder
from .plan import Plan, make_plan
from .recipe import Recipe
from .report import CalibrationRecord, LayerReport, QuantReport, check_fallback
from .rtn import rtn
from .targets import put_quantized, quantized_layers, weight_of

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

FORMATS = ("gptq",)


def quantize_(
    model: QwenVL,
    recipe: Recipe,
    prompts: Sequence[Prompt] = (),
    *,
    on_progress: Progress | None = None,
) -> QuantReport:
    """Replace linear layers of a model by quantized ones, as a recipe says; in place.

    After an error the model may be half quantized and is of no further use.

    Args:
        model: in any float dtype, on any device.
        recipe: what to quantize and how.
        prompts: calibration samples with their answers; may be empty if every step rounds only.
        on_progress: see `Progress`.

    Raises:
        ValueError: the plan does not fit the model, the model is quantized already, there are no
            prompts, activations overflow, or GPTQ falls back to rounding on over 5 % of the rows.
    """
    plan = make_plan(model.config, recipe)
    if done := quantized_layers(model):
        raise ValueError(f"{next(iter(done))} is quantized already; start from the original model")
    run = _Run(model, plan, on_progress or (lambda done, total, detail: None))
    for row in plan.quantized:
        if row.step is not None and row.step.method == "rtn":
            run.round(row.name)
    record = None
    if recipe.needs_calibration:
        record = CalibrationRecord.of(prompts)
        run_sequential(
            model,
            prompts,
            [row.spec for row in plan.quantized if row.step and row.step.method == "gptq"],
            run.solve,
            true_sequential=recipe.calibration.true_sequential,
            image_weight=recipe.calibration.image_weight,
        )
    layers = tuple(run.layers[row.name] for row in plan.quantized)
    return QuantReport(recipe, plan, layers, record)


class _Run:
    """Layers on their way from float to quantized."""

    def __init__(self, model: QwenVL, plan: Plan, on_progress: Progress) -> None:
        self.model = model
        self.rows = {row.name: row for row in plan.quantized}
        self.layers: dict[str, LayerReport] = {}
        self.on_progress = on_progress
        solved = [row for row in plan.quantized if row.step and row.step.method == "gptq"]
        self.rows_to_solve = sum(row.spec.out_features for row in solved)

    def round(self, name: str) -> None:
        """Quantize one layer to the nearest level."""
        row = self.rows[name]
        assert row.step is not None
        try:
            weight = rtn(weight_of(self.model, row.spec), row.step.scheme)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        put_quantized(self.model, row.spec, weight)
        self._done(LayerReport(row, None, 0), f"{name} rounded")

    def solve(self, group: TapGroup, hessian: Hessian) -> None:
        """Quantize the layers of a group with GPTQ."""
        for spec in group.linears:
            row = self.rows[spec.name]
            assert row.step is not None
            try:
                result = gptq(
                    weight_of(self.model, spec),
                    hessian.values,
                    row.step.scheme,
                    damp_percent=row.step.damp_percent,
                    act_order=row.step.act_order,
                    block_size=row.step.block_size,
                    scale_search=row.step.scale_search,
                )
            except ValueError as error:
                raise ValueError(
                    f"{spec.name} ({hessian.tokens} calibration tokens): {error}"
                ) from None
            put_quantized(self.model, spec, result.weight)
            detail = f"{spec.name} error {result.final_error:.2e}"
            if result.fallback:
                logger.warning("%s: %s", spec.name, result.fallback)
                detail += f" ({result.fallback})"
            self._done(LayerReport(row, result, hessian.tokens), detail)
            # Here and not at the end: the rest of the run would be for nothing.
            check_fallback(list(self.layers.values()), self.rows_to_solve)

    def _done(self, layer: LayerReport, detail: str) -> None:
        self.layers[layer.row.name] = layer
        self.on_progress(len(self.layers), len(self.rows), detail)


def check_format(plan: Plan, format: str = "gptq") -> None:
    """Refuse what a format cannot hold; ask before calibrating.

    Raises:
        ValueError: the format is unknown or does not fit the plan.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is unknown; allowed are {', '.join(FORMATS)}")
    if reason := gptq_format.why_not(plan):
        raise ValueError(f"format {format}: {reason}")


def save_quantized(
    model: QwenVL,
    report: QuantReport,
    source: str | Path,
    out: str | Path,
    *,
    format: str = "gptq",
    overwrite: bool = False,
) -> None:
    """Write a quantized model as a checkpoint folder, which appears whole or not at all.

    Args:
        model: as `quantize_` left it.
        report: what `quantize_` returned.
        source: the checkpoint that the model was loaded from (folder, hub id, ``tiny``); tensors
            that were not quantized and all side files come from there.
        out: folder to make.
        format: ``gptq``.
        overwrite: replace an existing folder.

    Raises:
        ValueError: the format does not fit, the source is another model, or `out` exists.
    """
    check_format(report.plan, format)
    gptq_format.write(model, report, resolve_folder(source), Path(out), overwrite=overwrite)
