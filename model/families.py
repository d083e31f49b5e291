"""The registry of family tables.

A new model type is one `Family` in a module of `family_tables`, a row of `FAMILIES`, and the
modules that it describes; CONTRIBUTING.md lists the steps.
"""

from __future__ import annotations

from .config import ModelConfig
from .family_tables.entries import (
    CARRIED_PARTS,
    BlockLinear,
    ExpertTensor,
    KeptLinear,
    LinearSpec,
    NormBinding,
    PaddedWidth,
    PairBinding,
    Part,
    WeightSlice,
    widths,
)
from .family_tables.llava import LLAVA, LLAVA_QWEN2
from .family_tables.qwen2_5_vl import QWEN2_5_VL
from .family_tables.qwen2_vl import QWEN2_VL
from .family_tables.qwen3_5 import QWEN3_5
from .family_tables.qwen3_5_moe import QWEN3_5_MOE
from .family_tables.qwen3_vl import QWEN3_VL
from .family_tables.qwen3_vl_moe import QWEN3_VL_MOE
from .family_tables.qwen_v1 import QWEN_V1
from .family_tables.stage import Blocks, Checkpoints, Stage
from .family_tables.table import EMBEDDING, SIDE_FILES, Family

__all__ = [
    "CARRIED_PARTS",
    "EMBEDDING",
    "FAMILIES",
    "SIDE_FILES",
    "BlockLinear",
    "Blocks",
    "Checkpoints",
    "ExpertTensor",
    "Family",
    "KeptLinear",
    "LinearSpec",
    "NormBinding",
    "PaddedWidth",
    "PairBinding",
    "Part",
    "Stage",
    "WeightSlice",
    "family_of",
    "widths",
]

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        *(QWEN2_VL, QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE, QWEN3_5, QWEN3_5_MOE),
        *(LLAVA, LLAVA_QWEN2, QWEN_V1),
    )
}


def family_of(config: ModelConfig) -> Family:
    """Return the family table of a model."""
    return FAMILIES[config.family]
