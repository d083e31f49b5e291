"""Opening of a model and its benchmarks, and the selection of the budgets that change an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ...common.progress import Reporter
from ...model.processing.processor import Processor
from ...model.qwen_vl import QwenVL
from ...quant.config import ModelSettings
from ...quant.resolve import Source
from ..config import QuestionOptions
from ..resolve import open_tasks
from ..tasks.task import Task
from .budgets import BudgetRange, parse_budgets
from .config import PixelsOptions
from .visual_tokens import VisualTokens, count_visual_tokens, measure_grids

Tokens = Mapping[int, Mapping[str, VisualTokens]]
"""By budget and benchmark; 0: with the checkpoint's own setting."""


@dataclass(frozen=True)
class Opened:
    """A model with its benchmarks and budgets."""

    source: Source
    tasks: list[Task]
    own: Processor
    processors: Mapping[int, Processor]
    """By budget, of those that change an image, the largest first."""
    tokens: Tokens
    without_effect: list[int]

    @cached_property
    def model(self) -> QwenVL:
        """The model, loaded on first use."""
        return self.source.load()


def open_budgets(options: PixelsOptions, settings: ModelSettings, reporter: Reporter) -> Opened:
    """Open model and benchmarks, and find the budgets that change an image.

    Raises:
        FileNotFoundError: the model or a benchmark file does not exist.
        ValueError: a benchmark is unusable, the model does not allow a budget, or no budget
            changes an image.
    """
    with reporter.step(f"reading {options.model} and the benchmarks"):
        source = Source.find(options.model, settings)
        own = source.processor()
        tasks = open_tasks(options.group(QuestionOptions), source, own)
    budgets, vision = parse_budgets(options.budgets), source.config.vision
    allowed = BudgetRange(own.min_pixels, own.max_pixels, vision.pixel_factor**2)
    allowed.check(budgets)
    processors = {
        budget: replace(
            source, settings=replace(settings, max_pixels=budget * allowed.pixels_per_token)
        ).processor()
        for budget in budgets
    }
    tokens = _count(tasks, own, processors)
    changing = [b for b in budgets if any(part.affected for part in tokens[b].values())]
    largest = max((part.largest for part in tokens[0].values()), default=0)
    where = f"no image of {', '.join(task.name for task in tasks)}, whose largest has {largest}"
    if not changing:
        smaller = sorted({max(allowed.least, largest * part // 4) for part in (1, 2, 3)})
        raise ValueError(
            f"--budgets {', '.join(map(str, budgets))}: change {where} visual tokens; give smaller "
            f"ones, such as --budgets {','.join(map(str, smaller))}"
        )
    without_effect = [budget for budget in budgets if budget not in changing]
    for budget in without_effect:
        reporter.note(f"budget {budget} changes {where} visual tokens: it is not measured")
    return Opened(
        source,
        tasks,
        own,
        {budget: processors[budget] for budget in changing},
        {budget: tokens[budget] for budget in (0, *changing)},
        without_effect,
    )


def _count(tasks: Sequence[Task], own: Processor, processors: Mapping[int, Processor]) -> Tokens:
    """Count the visual tokens of all benchmarks at all budgets."""
    unit = own.config.vision.merge_unit
    grids = {task.name: measure_grids(task, own) for task in tasks}
    return {
        budget: {
            task.name: count_visual_tokens(measure_grids(task, processor), grids[task.name], unit)
            for task in tasks
        }
        for budget, processor in ((0, own), *processors.items())
    }
