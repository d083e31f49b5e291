"""The verb `plan` of the Python API: a quantization, and the time of its evaluation."""

from __future__ import annotations

from typing import Any

from ...common.options import verb
from ...quant.api import plan as plan_quantization
from ...quant.config import ModelSettings
from ...quant.config import PlanOptions as QuantizationPlanOptions
from ..config import PlanOptions
from .checks import check_questions


@verb(PlanOptions)
def plan(options: PlanOptions) -> dict[str, Any]:
    """Compute the effect of a recipe on every linear layer of a model, without loading it.

    Memory and disk are computed for the samples that would be drawn; the packed size is estimated
    from a few rows of the weights, the time from the cached rates of this machine. With benchmarks,
    the time of evaluating both models in `run` is estimated too.

    Returns:
        Rows for the layers, sizes in bytes, times in seconds; `evaluation` is None without
        benchmarks.

    Raises:
        FileNotFoundError: no such model, recipe, benchmark or calibration source.
        ValueError: the recipe or a sample does not fit the model, or a benchmark is unusable.
    """
    settings = options.group(ModelSettings)
    check_questions(options, settings)
    result = plan_quantization(**vars(options.group(QuantizationPlanOptions)))
    if not options.bench:
        return {**result, "evaluation": None}
    from .evaluation_time import plan_evaluation  # imports statistics, which take half a second

    return {**result, "evaluation": plan_evaluation(options, settings)}
