"""Keep tokens that differ most from each other.

"DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models" (arXiv 2503.02175,
section 3): greedy solution of the max-min diversity problem with the distance 1 - cosine. The first
token is the one whose nearest other token is farthest away; each further one is the farthest from
those chosen before. Of equal ones the first in the image is taken. The paper prunes before the
decoder of LLaVA; here the tokens are those after the merger, frame by frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from ...common.validation import Real, validated
from .rule import Frame, ReductionRule, kept_count

if TYPE_CHECKING:
    from torch import Tensor


@validated
class DivPrune(ReductionRule):
    """Keeps a share of the tokens of every image."""

    keep: Annotated[float, Real(above=0, most=1)]
    """Share of the tokens that is kept; at least one token is."""

    method: ClassVar[str] = "divprune"

    def select(self, frame: Frame) -> Tensor:
        """See `ReductionRule.select`; takes 4 T^2 bytes for T tokens on the features' device."""
        return diverse_tokens(frame.features, kept_count(self.keep, len(frame.features)))


def diverse_tokens(features: Tensor, count: int) -> Tensor:
    """Select tokens by greedy max-min distance.

    Args:
        features: `[tokens, hidden]`, any float dtype.
        count: number of tokens to keep, 1 to `tokens`.

    Returns:
        int64 `[count]`, ascending, on the CPU.
    """
    import torch
    import torch.nn.functional as F

    if count == len(features):
        return torch.arange(count)
    unit = F.normalize(features.float(), dim=-1)
    similarity = unit @ unit.T
    # Exactly symmetric: two tokens that are each other's nearest are equally isolated.
    similarity = torch.maximum(similarity, similarity.T)
    similarity.fill_diagonal_(-torch.inf)
    chosen = [int(similarity.max(dim=0).values.argmin())]
    similarity.fill_diagonal_(torch.inf)  # a chosen token is not chosen again
    nearest = similarity[chosen[0]].clone()
    while len(chosen) < count:
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, similarity[chosen[-1]])
    return torch.tensor(sorted(chosen))
