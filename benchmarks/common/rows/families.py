"""All families of rows."""

from __future__ import annotations

from .adapters import AdapterRow
from .decoders import DecoderRow
from .grids import GridRow
from .masks import MaskRow
from .presets import PresetRow
from .recovered import RecoveredRow
from .rotations import RotationRow
from .row import Row
from .shrinks import ShrunkRow

FAMILIES: tuple[type[Row], ...] = (
    DecoderRow,
    GridRow,
    MaskRow,
    AdapterRow,
    RecoveredRow,
    RotationRow,
    ShrunkRow,
    PresetRow,
)
"""In the order of tables; no setting is in two of them."""


def all_rows() -> list[Row]:
    """Rows of all families."""
    return [row for family in FAMILIES for row in family.rows()]


def settings() -> list[str]:
    """Settings of all families."""
    return [setting for family in FAMILIES for setting in family.settings]
