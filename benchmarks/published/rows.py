"""Rows of the table on trained weights: settings, libraries and methods, the main ones first."""

from __future__ import annotations

from dataclasses import dataclass

from peers.settings import AUTO_ROUND, LLM_COMPRESSOR

OURS = "vlpress"
WEIGHT_ONLY = {
    OURS: ("rtn", "gptq", "gptaq", "awq+rtn", "awq+gptq"),
    LLM_COMPRESSOR: ("rtn", "gptq", "gptq-mse"),
    AUTO_ROUND: ("rtn", "autoround"),
}
METHODS: dict[str, dict[str, tuple[str, ...]]] = {
    "w3a16-g64": WEIGHT_ONLY,
    "w4a16-g64": WEIGHT_ONLY,
    "w8a8": {
        OURS: ("rtn", "gptq", "smoothquant+gptq"),
        LLM_COMPRESSOR: ("rtn", "gptq", "smoothquant+gptq-mse"),
    },
}
"""Methods by setting and library. Groups of 64, because the decoder is 576 wide."""
TUNED = "autoround"
"""AutoRound's optimization takes as long as all other rows together."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    setting: str
    library: str
    method: str
    """Steps in order, joined by a plus sign."""

    @property
    def key(self) -> str:
        """Name of the stored cell, and what --rows matches."""
        return f"{self.setting}/{self.library}/{self.method}"


def all_rows() -> list[Row]:
    """All rows; those that are tuned come last."""
    rows = [
        Row(setting, library, method)
        for setting, libraries in METHODS.items()
        for library, methods in libraries.items()
        for method in methods
    ]
    return sorted(rows, key=lambda row: row.method == TUNED)
