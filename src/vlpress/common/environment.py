"""Software, device and process environment that results depend on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__

if TYPE_CHECKING:
    import torch


def is_distributed() -> bool:
    """Whether torchrun started this process together with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def process_rank() -> int:
    """Return the rank that torchrun gave this process; 0 for a single process."""
    return int(os.environ["RANK"]) if is_distributed() else 0


def versions() -> dict[str, str]:
    """Return the versions of the packages that compute, tokenize and resize images."""
    import PIL
    import torch

    return {
        "vlpress": __version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "pillow": PIL.__version__,
    }


def processor_name() -> str:
    """Return the model name of the CPU; its architecture where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """Return the name of the hardware, as specific as results depend on it."""
    import torch

    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"{device.type}: {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
