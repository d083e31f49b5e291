"""vlpress: make Qwen-VL models small, and prove what it cost.

The public names are loaded on first use, so that ``import vlpress`` and ``vlpress --help`` do not
wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .common.threads import limit_spinning

if TYPE_CHECKING:
    from .eval import compare, evaluate
    from .model.loading import load_model
    from .quant.driver.pipeline import load_quantized, quantize_, save_quantized

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "compare",
    "evaluate",
    "load_model",
    "load_quantized",
    "quantize_",
    "save_quantized",
]

_HOME = {
    "load_model": ".model.loading",
    "quantize_": ".quant.driver.pipeline",
    "save_quantized": ".quant.driver.pipeline",
    "load_quantized": ".quant.driver.pipeline",
    "evaluate": ".eval",
    "compare": ".eval",
}

limit_spinning()


def __getattr__(name: str) -> object:
    """Import a public name from its room on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
