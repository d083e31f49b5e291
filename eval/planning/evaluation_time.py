"""Time of evaluating both models of a run, for `plan`."""

from __future__ import annotations

from typing import Any

from ...common.progress import reporting
from ...common.threads import use_threads
from ...quant.config import ModelSettings
from ...quant.resolve import Source
from ..config import PlanOptions, QuestionOptions
from ..fidelity.noise import UNITS
from ..resolve import open_tasks
from ..tasks import REASONING
from ..tasks.generated.reasoning import NONE
from ..tasks.task import by_unit
from .schedule import comparison_stages


def plan_evaluation(options: PlanOptions, settings: ModelSettings) -> dict[str, Any]:
    """Estimate the time of evaluating both models, in all and by benchmark."""
    use_threads(options.threads)
    with reporting(options.progress) as reporter, reporter.step("reading the benchmarks"):
        source = Source.find(options.model, settings)
        processor = source.processor()
        tasks = open_tasks(options.group(QuestionOptions), source, processor)
        noise = UNITS if options.noise is None else options.noise
        stages = comparison_stages(
            source,
            tasks,
            processor,
            batch_size=options.batch_size,
            noise=noise,
            samples=options.samples,
        )
    return {
        "seconds": sum(stage.seconds for stage in stages),
        "benchmarks": {
            task.name: {
                "questions": len(by_unit(task.fields)),
                "prompts": len(task.items),
                "reasoning_rule": task.fingerprint.get(REASONING, NONE),
                "max_new_tokens": task.fingerprint["max_new_tokens"],
                "seconds": sum(s.seconds for s in stages if s.title.split()[-1] == task.name),
            }
            for task in tasks
        },
    }
