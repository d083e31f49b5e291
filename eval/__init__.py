"""What a model scores, and what making it smaller cost."""

from .comparison import compare_many
from .evaluation import EvalResult, evaluate
from .report import compare
from .tasks import open_task

__all__ = ["EvalResult", "compare", "compare_many", "evaluate", "open_task"]
