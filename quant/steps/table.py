"""The tables of methods, transforms and preparations, by their names in recipes."""

from __future__ import annotations

from .awq import AWQStep
from .gptaq import GPTAQStep
from .gptq import GPTQStep
from .preparation import Preparation
from .prune_vocab import PruneVocabStep
from .rotate import RotateStep
from .rtn import RTNStep
from .shrink import ShrinkStep
from .smoothquant import SmoothQuantStep
from .step import Step, field_names
from .transform import Transform

METHODS: dict[str, type[Step]] = {kind.method: kind for kind in (GPTQStep, GPTAQStep, RTNStep)}
"""Methods that quantize layers."""
TRANSFORMS: dict[str, type[Transform]] = {kind.method: kind for kind in (SmoothQuantStep, AWQStep)}
"""Transforms of float weights that come before them."""
PREPARATIONS: dict[str, type[Preparation]] = {
    kind.method: kind for kind in (RotateStep, ShrinkStep, PruneVocabStep)
}
"""Changes of the whole float checkpoint that come before both."""


def methods_with(option: str) -> list[str]:
    """List the methods that have an option."""
    return [name for name, kind in METHODS.items() if option in field_names(kind)]
