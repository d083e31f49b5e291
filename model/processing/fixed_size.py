"""Images of one size: towers with a table of positions read squares of one number of pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image


@dataclass(frozen=True)
class FixedSize:
    """Steps that give every image the same size.

    Args:
        side: height and width of the result in pixels.
        edge: the shorter side after scaling, at least `side`, of which the centre is cut out; None:
            both sides are scaled to `side`, whatever the proportions are.
        padding: RGB colour of the bars that make the image a square before it is scaled; None: it
            is not padded.

    Raises:
        ValueError: `edge` is smaller than `side`.
    """

    side: int
    edge: int | None = None
    padding: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.edge is not None and self.edge < self.side:
            raise ValueError(
                f"images scaled to {self.edge} pixels do not fill {self.side}; allowed: at least "
                f"{self.side}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the result."""
        return self.side, self.side

    @property
    def fields(self) -> tuple[object, ...]:
        """Everything that the result follows from, besides the image."""
        return "fixed", self.side, self.edge, *(self.padding or ())

    def apply(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Bring an RGB image to the size, uint8 `[side, side, 3]`."""
        if self.padding is not None:
            image = _padded(image, self.padding)
        width, height = self._scaled(*image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.side) // 2, (height - self.side) // 2
        return np.asarray(image.crop((left, top, left + self.side, top + self.side)))

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        if self.edge is None:
            return self.side, self.side
        # Rounded down, as in the processors that models were trained with.
        long = int(self.edge * max(width, height) / min(width, height))
        return (self.edge, long) if width <= height else (long, self.edge)


def _padded(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """Return a square with the image in its middle."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
