"""Settings of a recipe for the weights of image and text tokens, see `token_weights`.

The module does not import torch, so that a recipe can be read without it.
"""

from dataclasses import asdict
from typing import Annotated

from ..common.validation import Real, validated

KINDS = ("uniform", "balanced", "gradient", "token-gradient")
GRADIENTS = KINDS[2:]
"""Kinds that need a forward and a backward pass of the float decoder before quantization."""


@validated
class FixedWeights:
    """Numeric weights of a recipe; only their ratio matters.

    Tokens of weight 0 are ignored, also in the ranges that determine static activation scales.
    """

    image: Annotated[float, Real(least=0)] = 1.0
    """Weight of an image or video token."""
    text: Annotated[float, Real(least=0)] = 1.0
    """Weight of every other token."""

    def __post_init__(self) -> None:
        if not (self.image or self.text):
            raise ValueError("the weights are all 0; give image or text a weight above 0")

    def to_dict(self) -> dict[str, float]:
        """Convert to JSON values."""
        return asdict(self)
