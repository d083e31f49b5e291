"""The commands of vlpress, run in the current environment."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE_IMAGE = ROOT / "examples" / "signs.png"
QUESTION = "What is written on the sign?"
SAMPLES = 16


def example(recipe: str) -> str:
    """Path of an example recipe."""
    return str(ROOT / "examples" / "recipes" / f"{recipe}.toml")


def quantize(model: str | Path, recipe: str, format: str, out: Path) -> None:
    """Quantize a model into a folder; a finished folder is left unchanged."""
    samples = ("--calib-samples", str(SAMPLES))
    scheme = ("--recipe", recipe, "--format", format, *samples)
    _vlpress("quantize", model, *scheme, "--overwrite", "-o", out)


def export(checkpoint: Path, format: str, out: Path, *options: str) -> None:
    """Write a checkpoint in another format."""
    _vlpress("export", checkpoint, "--format", format, *options, "--overwrite", "-o", out)


def imatrix(model: Path, out: Path) -> None:
    """Write an importance matrix of a model."""
    _vlpress("imatrix", model, "--calib-samples", SAMPLES, "-o", out)


def answer(model: str | Path, question: str = QUESTION) -> str:
    """Answer of a model about the example image."""
    output = _vlpress("generate", model, "--image", EXAMPLE_IMAGE, question)
    return str(json.loads(output)["answer"])


def digest(folder: Path) -> str:
    """sha256 of a checkpoint's weights."""
    return file_digest(folder / "model.safetensors")


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _vlpress(verb: str, *arguments: object) -> str:
    command = [sys.executable, "-m", "vlpress", verb, *map(str, arguments), "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout
