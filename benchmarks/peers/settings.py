"""What is compared: grids of weights and activations, and the methods of each library.

Read in every environment, so nothing but the standard library is imported here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

LLM_COMPRESSOR, AUTO_ROUND = "llmcompressor", "auto-round"
"""Names of the packages, of their environments and of their scripts."""
RECORD = "peer.json"
"""File in a finished checkpoint that says what it was made from, and by which version."""


@dataclass(frozen=True)
class Setting:
    """A grid: what is stored, whoever chose the integers."""

    bits: int
    group_size: int
    """Weights per scale; -1: one scale for each output row."""
    symmetric: bool = True
    int8_activations: bool = False
    """Rounded to 8 bits while the model runs, one scale for each token."""


SETTINGS = {
    "w8a8": Setting(8, -1, int8_activations=True),
    "w4a8": Setting(4, 128, int8_activations=True),
    "w4a16": Setting(4, 128),
    "w4a16-g32": Setting(4, 32),
    "w4a16-asym": Setting(4, 128, symmetric=False),
    "w3a16": Setting(3, 128),
}
"""Under the names that vlpress's own table has."""

INTEGER = ("rtn", "gptq", "smoothquant+gptq", "smoothquant+gptq-mse")
WEIGHT_ONLY = ("rtn", "gptq", "gptq-mse", "awq+rtn", "awq+gptq-mse")
TUNED = ("rtn", "opt-rtn", "autoround", "autoround-best")
METHODS: dict[str, dict[str, tuple[str, ...]]] = {
    LLM_COMPRESSOR: {
        "w8a8": INTEGER,
        "w4a8": INTEGER,
        "w4a16": WEIGHT_ONLY,
        "w4a16-g32": WEIGHT_ONLY,
        "w4a16-asym": ("rtn", "gptq", "gptq-mse", "awq+rtn"),
        "w3a16": WEIGHT_ONLY,
    },
    AUTO_ROUND: {"w4a16": TUNED, "w3a16": TUNED},
}
"""Of each library, for each setting: passes in order, joined by a plus sign. docs/peers.md says
what the names stand for."""
ONE_SEED = ("rtn", "autoround-best")
"""Methods that run for the first seed only: one looks at no samples, one takes minutes."""


@dataclass(frozen=True)
class Job:
    """One checkpoint to write."""

    model: str
    peer: str
    setting: str
    method: str
    seed: int
    """Of the draw of the calibration samples."""
    source: Path
    """Folder of the float model."""
    samples: Path
    """File of `samples.write`."""
    made_from: str
    """Digest of what goes in: another one makes the checkpoint stale."""
    out: Path
    """Folder to write."""

    @property
    def grid(self) -> Setting:
        """The setting itself."""
        return SETTINGS[self.setting]


def seeds_of(method: str, seeds: Sequence[int]) -> Sequence[int]:
    """The seeds that a method runs for."""
    return seeds[:1] if method in ONE_SEED else seeds


def write_jobs(jobs: Sequence[Job], path: Path) -> None:
    """Write jobs for `read_jobs`."""
    path.write_text(json.dumps([asdict(job) for job in jobs], indent=1, default=str) + "\n")


def read_jobs(path: Path) -> Iterator[Job]:
    """Read what `write_jobs` wrote."""
    for row in json.loads(path.read_text()):
        paths = {key: Path(row[key]) for key in ("source", "samples", "out")}
        yield Job(**{**row, **paths})
