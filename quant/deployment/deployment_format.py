"""Interface of the formats of other runtimes.

Unlike a checkpoint format (`checkpoint/formats/format.py`), such a format holds float models too,
is not read back, and may divide a model into several files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ...common.progress import Reporter
from ..config import ExportOptions
from .source import ExportSource

DESCRIPTION = "export.json"
"""File with the description of an export, which every format writes."""


class DeploymentFormat(Protocol):
    """A format of another runtime."""

    @property
    def name(self) -> str:
        """Value of the option `--format`."""
        ...

    @property
    def options(self) -> tuple[str, ...]:
        """Fields of `ExportOptions` that only some formats have and this one is among."""
        ...

    @property
    def adapter_advice(self) -> str:
        """What to do with the low-rank adapter of a checkpoint, for which there is no place."""
        ...

    def why_not(self, source: ExportSource, options: ExportOptions) -> str | None:
        """Return the reason that the format cannot hold the checkpoint, and a remedy; or None.

        Reads no weights.
        """
        ...

    def write(
        self, source: ExportSource, folder: Path, options: ExportOptions, reporter: Reporter
    ) -> Mapping[str, Any]:
        """Write all files into an empty folder.

        Args:
            source: a checkpoint for which `why_not` is None.
            folder: existing and empty; it is renamed to the output folder afterwards.
            options: of the export.
            reporter: shows progress and warnings.

        Returns:
            The description, without the key `files`: `export` adds it and writes `DESCRIPTION`.

        Raises:
            ValueError: the format cannot represent a number of a layer.
        """
        ...
