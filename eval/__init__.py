"""What a model scores, and what making it smaller cost."""

from .comparison import compare_many
from .evaluation import EvalResult, evaluate
from .extract import extract_choice
from .plain_rows import circular_hits, mmmu_exact_hit
from .report import compare
from .served import evaluate_endpoint
from .tasks import open_task
from .tasks.ocrbench import ocrbench_hit

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
