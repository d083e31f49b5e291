"""What a model scores, and what making it smaller cost.

Modules are imported when one of their names is asked for: statistics and plots take seconds to
import, and most commands need neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparison import compare_many
    from .evaluation import EvalResult, evaluate
    from .extract import extract_choice
    from .plain_rows import circular_hits, mmmu_exact_hit
    from .report import compare
    from .served import evaluate_endpoint
    from .tasks import open_task
    from .tasks.ocrbench import ocrbench_hit

_MODULES = {
    "EvalResult": "evaluation",
    "circular_hits": "plain_rows",
    "compare": "report",
    "compare_many": "comparison",
    "evaluate": "evaluation",
    "evaluate_endpoint": "served",
    "extract_choice": "extract",
    "mmmu_exact_hit": "plain_rows",
    "ocrbench_hit": "tasks.ocrbench",
    "open_task": "tasks",
}

__all__ = [
    "EvalResult",
    "circular_hits",
    "compare",
    "compare_many",
    "evaluate",
    "evaluate_endpoint",
    "extract_choice",
    "mmmu_exact_hit",
    "ocrbench_hit",
    "open_task",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
