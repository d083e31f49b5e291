"""Evaluation: benchmarks, paired statistics, fidelity and reports.

Public names are imported on first use (PEP 562): statistics and plots take seconds to import, and
most commands need neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .answering.openai_responder import evaluate_endpoint
    from .evaluation import EvalResult, evaluate_model
    from .report.comparison import compare_many
    from .report.report import compare
    from .report.score_rows import circular_hits, mmmu_exact_hit
    from .tasks import open_task
    from .tasks.benchmarks.ocrbench import ocrbench_hit
    from .tasks.extract import extract_choice

_MODULES = {
    "EvalResult": "evaluation",
    "circular_hits": "report.score_rows",
    "compare": "report.report",
    "compare_many": "report.comparison",
    "evaluate_endpoint": "answering.openai_responder",
    "evaluate_model": "evaluation",
    "extract_choice": "tasks.extract",
    "mmmu_exact_hit": "report.score_rows",
    "ocrbench_hit": "tasks.benchmarks.ocrbench",
    "open_task": "tasks",
}

__all__ = [
    "EvalResult",
    "circular_hits",
    "compare",
    "compare_many",
    "evaluate_endpoint",
    "evaluate_model",
    "extract_choice",
    "mmmu_exact_hit",
    "ocrbench_hit",
    "open_task",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
