"""Named recipes as plain data.

A name gives the bits of weights and activations (`w4a8`), or the grid of both (`fp8`, `nvfp4`; with
`a16` of the weights alone), then each departure from the defaults.
The defaults are: GPTQ for the decoder; weights in groups of 128, or one scale per output row where
both factors of the product have 8 bits; activations smoothed (SmoothQuant) and quantized with one
scale per token. The files under examples/recipes spell out the same recipes with every default.

The module imports nothing of the project: the command line lists the names before it loads torch.
"""

from collections.abc import Sequence
from typing import Any

DECODER = "model.layers.*"
"""Targets of a step that names none."""
SEARCH = "search"
"""The `alpha` of a SmoothQuant step that is searched in every block."""
ALPHA = SEARCH
"""Default of the presets; no single number did as well on the built-in models, see docs/log.md."""
VISION = ("tower",)
"""All layers of the tower, see `spell_out_parts`."""
DYNAMIC = {"activations": "dynamic"}
STATIC = {"activations": "static"}


def _weights(
    bits: int,
    group_size: int = 128,
    *,
    method: str = "gptq",
    targets: Sequence[str] = (DECODER,),
) -> dict[str, Any]:
    """Return a step that quantizes weights and leaves activations in float."""
    return {"method": method, "bits": bits, "group_size": group_size, "targets": list(targets)}


def _smoothquant(targets: Sequence[str] = (DECODER,)) -> dict[str, Any]:
    return {"method": "smoothquant", "alpha": ALPHA, "targets": list(targets)}


def _table(grid: str, **scheme: Any) -> dict[str, Any]:
    """Return a step that solves for levels of a table."""
    return {"method": "gptq", "grid": grid, "targets": [DECODER], **scheme}


BLOCKS = {"group_size": 128, "scale_rows": 128}

_STEPS: dict[str, list[dict[str, Any]]] = {
    "w4a16": [_weights(4)],
    "w8a16": [_weights(8)],
    "w3a16": [_weights(3)],
    "w4a16-g32": [_weights(4, 32)],
    "w4a16-gptaq": [_weights(4, method="gptaq")],
    "w3a16-gptaq": [_weights(3, method="gptaq")],
    "w4a16-awq": [{"method": "awq"}, _weights(4, method="rtn") | {"symmetric": False}],
    "w8a8": [_smoothquant(), _weights(8, -1) | DYNAMIC],
    "w8a8-static": [_smoothquant(), _weights(8, -1) | STATIC],
    "w4a8": [_smoothquant(), _weights(4) | DYNAMIC],
    "vision-w8a16+decoder-w4a16": [_weights(8, -1, targets=VISION), _weights(4)],
    "vision-w8a8+decoder-w4a16": [
        _smoothquant(VISION),
        _weights(8, -1, targets=VISION) | DYNAMIC,
        _weights(4),
    ],
    "w4a16-all": [
        _weights(4, 32, targets=VISION),
        _weights(4, method="rtn", targets=("embedding",)),
        _weights(8, method="rtn", targets=("lm_head",)),
        _weights(4),
    ],
    "fp8": [_table("fp8", **DYNAMIC)],
    "fp8-block": [_table("fp8", **BLOCKS, **DYNAMIC)],
    "fp8-static": [_table("fp8", **STATIC)],
    "nvfp4": [_table("nvfp4", **DYNAMIC)],
    "nvfp4a16": [_table("nvfp4")],
    "mxfp4": [_table("mxfp4", **DYNAMIC)],
    "w4a16-rtn": [_weights(4, method="rtn")],
    "w8a16-rtn": [_weights(8, method="rtn")],
    "w3a16-rtn": [_weights(3, method="rtn")],
    "w8a8-rtn": [_weights(8, -1, method="rtn") | DYNAMIC],
    "fp8-rtn": [_table("fp8", **DYNAMIC) | {"method": "rtn"}],
}

_TOP: dict[str, dict[str, Any]] = {"w4a16-all": {"tie": False}}
"""Further keys at the top level."""

PRESETS: dict[str, dict[str, Any]] = {
    name: {"name": name, **_TOP.get(name, {}), "step": steps} for name, steps in _STEPS.items()
}

HEADS: dict[str, dict[str, Any]] = {
    "w8a16": _weights(8, targets=["lm_head"]),
    "w8a16-rtn": _weights(8, method="rtn", targets=["lm_head"]),
}
"""Steps for an output head that has a weight of its own, by the value of a recipe's `lm_head`."""
