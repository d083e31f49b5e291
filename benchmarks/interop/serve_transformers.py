"""Run `transformers serve` with images resized by Pillow.

    python benchmarks/interop/serve_transformers.py MODEL --port N [...]

The server imports torchvision for its video processor. vlpress resizes with Pillow; torchvision's
resampling gives other pixels, which is not the subject of the comparison.
"""

from __future__ import annotations

import importlib
import re
import sys
from functools import partial

import torch

MISSING = re.compile(r"operator (torchvision::\w+) does not exist")


def load_torchvision() -> None:
    """Import torchvision even if its compiled part does not load.

    The build on PyPI is for the CUDA build of torch; with the CPU build its import fails at missing
    operators, which images do not need.
    """
    for _ in range(8):
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            match = MISSING.search(str(error))
            if match is None:
                raise
            torch.library.define(match[1], "(Tensor dets, Tensor scores, float iou) -> Tensor")
    importlib.import_module("torchvision")


def main() -> None:
    """Run the server until it is stopped."""
    load_torchvision()
    from transformers import AutoImageProcessor
    from transformers.cli.transformers import main as transformers

    load = AutoImageProcessor.from_pretrained
    AutoImageProcessor.from_pretrained = partial(load, backend="pil")
    sys.argv = ["transformers", "serve", *sys.argv[1:]]
    transformers()


if __name__ == "__main__":
    main()
