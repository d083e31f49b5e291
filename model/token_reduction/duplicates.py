"""Drop tokens that repeat a neighbour, such as blank paper and flat colour.

Tokens are visited row by row. A token is dropped if the cosine between its features and those of
the token that represents its left neighbour exceeds the threshold, or else that of its upper
neighbour; that token then represents it too. All others are kept, and represent themselves. So
every dropped token is similar to a kept one. Connected components of similar neighbours would not
ensure that: along a gradient each token resembles the next one, and the first not the last.

The kept token keeps its own features. A mean over the region would belong to no position, and the
features that decoder layers add (DeepStack) would need another one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from ...common.validation import Real, validated
from .rule import Frame, ReductionRule

if TYPE_CHECKING:
    from torch import Tensor


@validated
class Duplicates(ReductionRule):
    """Keeps one token per region of similar neighbours; the number varies by image."""

    threshold: Annotated[float, Real(above=0)] = 0.98
    """Cosine above which a token is dropped; from 1 on nothing is."""

    method: ClassVar[str] = "duplicates"

    def select(self, frame: Frame) -> Tensor:
        """See `ReductionRule.select`; runs on the CPU."""
        return distinct_tokens(frame.features, frame.width, self.threshold)


def distinct_tokens(features: Tensor, width: int, threshold: float) -> Tensor:
    """Select the tokens that resemble neither neighbour's representative.

    Args:
        features: `[height * width, hidden]`, row by row, any float dtype.
        width: tokens per row.
        threshold: cosine above which a token is dropped.

    Returns:
        int64 `[kept]`, ascending, on the CPU.
    """
    import torch
    import torch.nn.functional as F

    unit = F.normalize(features.to("cpu", torch.float32), dim=-1).numpy()
    represented_by: list[int] = []
    for index, vector in enumerate(unit):
        neighbours = [represented_by[index - 1]] if index % width else []
        neighbours += [represented_by[index - width]] if index >= width else []
        similar = (other for other in neighbours if min(vector @ unit[other], 1.0) > threshold)
        represented_by.append(next(similar, index))
    return torch.tensor(sorted(set(represented_by)))
