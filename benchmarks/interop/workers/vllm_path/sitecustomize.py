"""Operators that vLLM's CPU build lacks on this machine, declared in every Python process.

With this folder on PYTHONPATH, Python imports this module when it starts, in the processes that
vLLM starts as well.

- torchvision on PyPI is built for the CUDA build of torch. With the CPU build its compiled part
  does not load and the import fails at operators that images do not need. They are declared
  without an implementation.
- `_C::cpu_gemm_wna16` without AVX-512, see `wna16.py`.
"""

from __future__ import annotations

import torch
import wna16

TORCHVISION = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

for name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{name}", TORCHVISION)
if not torch.cpu._is_avx512_supported():
    library = wna16.register()
