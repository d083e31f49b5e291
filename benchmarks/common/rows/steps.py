"""Steps of recipes by their names in methods, such as `awq+gptq`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DECODER = ["model.layers.*"]
ALPHA = 0.8
"""Alpha of SmoothQuant if it is fixed: the value of the peers' examples."""

DOWN = "smoothquant-down"
"""Transform of the inputs of `down_proj`, which no rotation reaches."""
TRANSFORMS: dict[str, dict[str, Any]] = {
    "awq": {"method": "awq"},
    "smoothquant": {"method": "smoothquant", "alpha": ALPHA},
    "smoothquant-search": {"method": "smoothquant", "alpha": "search"},
    DOWN: {
        "method": "smoothquant",
        "alpha": "search",
        "targets": ["model.layers.*.mlp.down_proj"],
    },
}
ROTATES: dict[str, dict[str, Any]] = {
    "rotate": {"method": "rotate"},
    "rotate8": {"method": "rotate", "seeds": 8, "samples": 64},
}
"""Rotations of the whole model, before the transforms."""


def steps_of(
    method: str, parts: Sequence[tuple[list[str], Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """List the steps of a method.

    Args:
        method: names of rotation, transforms and solver in order, joined by a plus sign.
        parts: targets of each step of the solver, with its scheme.
    """
    *before, solver = method.split("+")
    targets_of_all = [target for targets, _ in parts for target in targets]
    return [
        *(ROTATES[name] for name in before if name in ROTATES),
        *({"targets": targets_of_all, **TRANSFORMS[name]} for name in before if name in TRANSFORMS),
        *({"method": solver, "targets": targets, **scheme} for targets, scheme in parts),
    ]
