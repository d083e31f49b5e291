"""Compared settings: grids of weights and activations, and the methods of each library.

Imported in every environment, so that only the standard library is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

LLM_COMPRESSOR, AUTO_ROUND = "llmcompressor", "auto-round"
"""Names of the packages, their environments and their scripts."""
RECORD = "peer.json"
"""File in a finished checkpoint with the digest of its inputs and the library's version."""


@dataclass(frozen=True)
class Setting:
    """A quantization grid, independent of the method."""

    bits: int
    group_size: int
    """Weights per scale; -1 for one scale per output row."""
    symmetric: bool = True
    int8_activations: bool = False
    """Dynamic int8 activations, one scale per token."""
    scheme: str = ""
    """Scheme of compressed-tensors for a table of levels, which defines everything."""


SETTINGS = {
    "w8a8": Setting(8, -1, int8_activations=True),
    "w4a8": Setting(4, 128, int8_activations=True),
    "w4a16": Setting(4, 128),
    "w4a16-g32": Setting(4, 32),
    "w4a16-asym": Setting(4, 128, symmetric=False),
    "w3a16": Setting(3, 128),
    "w4a16-g64": Setting(4, 64),
    "w3a16-g64": Setting(3, 64),
}
"""Settings by their names in vlpress's own table. Groups of 64 are for `real_weights.py` alone."""
GRIDS = {
    "fp8": Setting(8, -1, scheme="FP8_DYNAMIC"),
    "fp8-block": Setting(8, 128, scheme="FP8_BLOCK"),
    "nvfp4": Setting(4, 16, scheme="NVFP4"),
    "nvfp4a16": Setting(4, 16, scheme="NVFP4A16"),
}
"""Tables of levels, compared on request, with a table of `accuracy.py` for the same ones."""

INTEGER = ("rtn", "gptq", "smoothquant+gptq", "smoothquant+gptq-mse")
WEIGHT_ONLY = ("rtn", "gptq", "gptq-mse", "awq+rtn", "awq+gptq-mse")
TABLES = ("rtn", "rtn-mse", "gptq", "gptq-mse")
TUNED = ("rtn", "opt-rtn", "autoround", "autoround-best")
METHODS: dict[str, dict[str, tuple[str, ...]]] = {
    LLM_COMPRESSOR: {
        "w8a8": INTEGER,
        "w4a8": INTEGER,
        "w4a16": WEIGHT_ONLY,
        "w4a16-g32": WEIGHT_ONLY,
        "w4a16-asym": ("rtn", "gptq", "gptq-mse", "awq+rtn"),
        "w3a16": WEIGHT_ONLY,
        **dict.fromkeys(GRIDS, TABLES),
    },
    AUTO_ROUND: {"w4a16": TUNED, "w3a16": TUNED},
}
"""Methods by library and setting: steps in order, joined by a plus sign. docs/peers.md explains the
names."""
ONE_SEED = ("rtn", "rtn-mse", "autoround-best")
"""Methods for the first seed only: two use no samples for weights, one takes minutes."""


@dataclass(frozen=True)
class Job:
    """One checkpoint to write."""

    model: str
    peer: str
    setting: str
    method: str
    seed: int
    """Seed of the calibration samples."""
    source: Path
    """Folder of the float model."""
    samples: Path
    """File written by `samples.write`."""
    made_from: str
    """Digest of the inputs; a checkpoint with another digest is stale."""
    out: Path
    """Output folder."""

    @property
    def grid(self) -> Setting:
        """The setting itself."""
        return (SETTINGS | GRIDS)[self.setting]


def seeds_of(method: str, seeds: Sequence[int]) -> Sequence[int]:
    """Seeds of a method."""
    return seeds[:1] if method in ONE_SEED else seeds


def write_jobs(jobs: Sequence[Job], path: Path) -> None:
    """Write jobs for `read_jobs`."""
    path.write_text(json.dumps([asdict(job) for job in jobs], indent=1, default=str) + "\n")


def read_jobs(path: Path) -> Iterator[Job]:
    """Read jobs written by `write_jobs`."""
    for row in json.loads(path.read_text()):
        paths = {key: Path(row[key]) for key in ("source", "samples", "out")}
        yield Job(**{**row, **paths})
