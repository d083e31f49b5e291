"""The verb `plan` of the Python API: a quantization, and the time of its evaluation."""

from __future__ import annotations

from typing import Any

from ...common.options import verb
from ...common.progress import reporting
from ...common.threads import use_threads
from ...quant.api import plan as plan_quantization
from ...quant.config import ModelSettings
from ...quant.config import PlanOptions as QuantizationPlanOptions
from ...quant.resolve import Source
from ..config import PlanOptions, QuestionOptions
from ..fidelity.noise import UNITS
from ..resolve import open_tasks
from ..tasks.task import by_unit
from .checks import check_questions
from .schedule import comparison_stages


@verb(PlanOptions)
def plan(options: PlanOptions) -> dict[str, Any]:
    """Compute the effect of a recipe on every linear layer of a model, without its weights.

    Memory and disk are computed for the samples that would be drawn; the time is estimated from
    the cached rates of this machine. With benchmarks, the time of evaluating both models in `run`
    is estimated too.

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
    return {**result, "evaluation": _plan_evaluation(options, settings) if options.bench else None}


def _plan_evaluation(options: PlanOptions, settings: ModelSettings) -> dict[str, Any]:
    """Estimate the time of evaluating both models, in all and by benchmark."""
    use_threads(options.threads)
    with reporting(options.progress) as reporter, reporter.step("reading the benchmarks"):
        source = Source.find(options.model, settings)
        processor = source.processor()
        tasks = open_tasks(options.group(QuestionOptions), source, processor)
        noise = UNITS if options.noise is None else options.noise
        stages = comparison_stages(
            source, tasks, processor, batch_size=options.batch_size, noise=noise
        )
    return {
        "seconds": sum(stage.seconds for stage in stages),
        "benchmarks": {
            task.name: {
                "questions": len(by_unit(task.fields)),
                "prompts": len(task.items),
                "seconds": sum(s.seconds for s in stages if s.title.split()[-1] == task.name),
            }
            for task in tasks
        },
    }
