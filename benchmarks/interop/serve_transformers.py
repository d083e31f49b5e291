"""`transformers serve` as it is, with pictures scaled by Pillow.

    python benchmarks/interop/serve_transformers.py MODEL --port N [...]

The server loads torchvision because the processor of videos does. Pillow is what vlpress scales
with; torchvision's own scaling gives other pixels, and that is not what is compared here.
"""

from __future__ import annotations

import importlib
import re
import sys
from functools import partial

import torch

MISSING = re.compile(r"operator (torchvision::\w+) does not exist")


def load_torchvision() -> None:
    """Import torchvision also where its compiled part does not load.

    The registry's build is made for the CUDA build of torch and stops beside the CPU build at
    operators that it has not loaded. Pictures need none of them.
    """
    for _ in range(8):
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            found = MISSING.search(str(error))
            if found is None:
                raise
            torch.library.define(found[1], "(Tensor dets, Tensor scores, float iou) -> Tensor")
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
