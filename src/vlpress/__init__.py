"""vlpress: quantize Qwen vision-language models and measure the accuracy loss.

The functions named like a verb of the command line have the same options and defaults: `run`,
`plan`, `search`, `quantize`, `recover`, `teach`, `export`, `pack`, `unpack`, `evaluate`,
`compare`, `pixels`, `generate`, `inspect`, `imatrix`, `push`, `verify`. The others work on models
in memory. Public names are loaded on first use (PEP 562), so that `import vlpress` and
`vlpress --help` do not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .eval.api import compare, evaluate
    from .eval.own.split import split
    from .eval.pixels.run import pixels
    from .eval.planning.run_plan import plan
    from .eval.run import run
    from .eval.search.run import search
    from .model.loading import load_model
    from .quant.api import export, inspect, push, quantize
    from .quant.driver.pipeline import load_quantized, quantize_, save_quantized
    from .quant.generate import generate
    from .quant.imatrix import imatrix
    from .quant.integer.run import verify
    from .quant.pack import pack, unpack
    from .quant.recover.api import recover, teach
    from .quant.recover.recovery import recover_

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "compare",
    "evaluate",
    "export",
    "generate",
    "imatrix",
    "inspect",
    "load_model",
    "load_quantized",
    "pack",
    "pixels",
    "plan",
    "push",
    "quantize",
    "quantize_",
    "recover",
    "recover_",
    "run",
    "save_quantized",
    "search",
    "split",
    "teach",
    "unpack",
    "verify",
]

_MODULES = {
    "compare": ".eval.api",
    "evaluate": ".eval.api",
    "export": ".quant.api",
    "generate": ".quant.generate",
    "imatrix": ".quant.imatrix",
    "inspect": ".quant.api",
    "load_model": ".model.loading",
    "load_quantized": ".quant.driver.pipeline",
    "pack": ".quant.pack",
    "pixels": ".eval.pixels.run",
    "plan": ".eval.planning.run_plan",
    "push": ".quant.api",
    "quantize": ".quant.api",
    "quantize_": ".quant.driver.pipeline",
    "recover": ".quant.recover.api",
    "recover_": ".quant.recover.recovery",
    "run": ".eval.run",
    "save_quantized": ".quant.driver.pipeline",
    "search": ".eval.search.run",
    "split": ".eval.own.split",
    "teach": ".quant.recover.api",
    "unpack": ".quant.pack",
    "verify": ".quant.integer.run",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
