"""The software and the device that a result was computed with."""

from __future__ import annotations

import platform
from importlib.metadata import version

import PIL
import torch

from .. import __version__


def versions() -> dict[str, str]:
    """Versions of what computes, tokenizes and scales pictures."""
    return {
        "vlpress": __version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "pillow": PIL.__version__,
    }


def device_name(device: torch.device) -> str:
    """Name the hardware as far as it decides about results."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"{device.type}: {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
