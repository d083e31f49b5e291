"""Date, commit and machine of a result."""

from __future__ import annotations

import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import torch

from vlpress import __version__
from vlpress.common.environment import processor_name
from vlpress.quant.kernels.library import chosen_kernels

ROOT = Path(__file__).resolve().parents[2]


def provenance(device: str = "cpu") -> dict[str, Any]:
    """Header of every result file."""
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": machine(device),
        "versions": {"vlpress": __version__, "torch": torch.__version__},
    }


def describe(results: dict[str, Any]) -> str:
    """Format a header as a line of text."""
    machine, torch_version = results["machine"], results["versions"]["torch"]
    parts = [results["date"], f"commit {results['commit']}", machine["processor"]]
    parts.append(f"{machine['threads']} threads")
    if "kernels" in machine:  # older results do not have it
        parts.append(f"{machine['kernels']} kernels")
        torch_version += f" ({machine['torch_instructions']})"
    return f"{', '.join(parts)}, torch {torch_version}."


def machine(device: str) -> dict[str, Any]:
    """Describe the processor, the threads, and the instructions that vlpress and torch use."""
    processor = processor_name()
    on_gpu = torch.cuda.is_available() and device != "cpu"
    if on_gpu:
        processor = torch.cuda.get_device_name()
    kernels = chosen_kernels()
    return {
        "processor": processor,
        "threads": torch.get_num_threads(),
        "gpu": on_gpu,
        "kernels": "reference" if isinstance(kernels, str) else kernels.name,
        "torch_instructions": torch.backends.cpu.get_cpu_capability(),
    }


def commit() -> str:
    """Short hash of the checked-out commit, with a + if the tree has changes."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed
