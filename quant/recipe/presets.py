"""Recipes that have a name, as plain data.

A name tells the bits of weights and activations (``w4a8``), then what departs from the usual way.
That is: GPTQ for the decoder; weights in groups of 128, but one scale per output row where both
sides of the product have 8 bits; activations smoothed and rounded with one scale per token. Those
that lie under examples/recipes spell out the same with every default.
"""

from collections.abc import Sequence
from typing import Any

from .steps import DECODER, SEARCH, Method

ALPHA = SEARCH
"""Of smoothquant; no single number did as well on the built-in models, see docs/log.md."""
VISION = ("visual.blocks.*", "visual.merger.*")
DYNAMIC = {"activations": "dynamic"}
STATIC = {"activations": "static"}


def _weights(
    bits: int,
    group_size: int = 128,
    *,
    method: Method = "gptq",
    targets: Sequence[str] = (DECODER,),
) -> dict[str, Any]:
    """A step that quantizes weights and leaves activations alone."""
    return {"method": method, "bits": bits, "group_size": group_size, "targets": list(targets)}


def _smoothquant(targets: Sequence[str] = (DECODER,)) -> dict[str, Any]:
    return {"method": "smoothquant", "alpha": ALPHA, "targets": list(targets)}


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
    "w4a16-rtn": [_weights(4, method="rtn")],
    "w8a16-rtn": [_weights(8, method="rtn")],
    "w3a16-rtn": [_weights(3, method="rtn")],
    "w8a8-rtn": [_weights(8, -1, method="rtn") | DYNAMIC],
}

PRESETS: dict[str, dict[str, Any]] = {
    name: {"name": name, "step": steps} for name, steps in _STEPS.items()
}

HEADS: dict[str, dict[str, Any]] = {
    "w8a16": _weights(8, targets=["lm_head"]),
    "w8a16-rtn": _weights(8, method="rtn", targets=["lm_head"]),
}
"""What may become of an output head that has a weight of its own."""
