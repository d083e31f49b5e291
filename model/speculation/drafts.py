"""Drafts of tokens, and their acceptance without changing the distribution of the answer.

"Fast Inference from Transformers via Speculative Decoding" (arXiv 2211.17192, sections 2.3 and
A.1): a draft x that was drawn from q is accepted with probability `min(1, p(x) / q(x))`, where p is
the model's distribution; otherwise a token is drawn from `max(0, p - q)`, normalized. The token has
the distribution p in both cases. With greedy decoding a draft is accepted if it is the model's
choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..generation import Sampling, sample_token, sampling_distribution
from ..processing.inputs import Batch


class Choice(NamedTuple):
    """A token, and the distribution that it was drawn from."""

    token: int
    distribution: Tensor | None
    """float32 `[vocab]`, normalized; None: all of it on the token."""


@dataclass
class Chooser:
    """Chooses tokens of one answer: the sampling parameters and the tokens so far.

    Args:
        sampling: sampling parameters.
        seen: bool `[vocab]`, tokens of prompt and answer; updated by `append`.
        generator: on the device of the logits.
    """

    sampling: Sampling
    seen: Tensor
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    """Of the answer."""

    @property
    def is_greedy(self) -> bool:
        """Whether no token is drawn at random."""
        return self.sampling.temperature == 0

    def append(self, token: int) -> None:
        """Add a token to the answer."""
        self.tokens.append(token)
        self.seen[token] = True

    def choose(self, logits: Tensor, drafts: Sequence[int] = ()) -> Choice:
        """Choose the token after the answer and some drafts, from logits `[vocab]`."""
        seen = self._seen_with(drafts)
        if self.is_greedy:
            return Choice(sample_token(logits, seen, self.sampling), None)
        distribution = _normalized(sampling_distribution(logits, seen, self.sampling))
        return Choice(self.draw(distribution), distribution)

    def distribution(self, logits: Tensor, drafts: Sequence[int]) -> Tensor:
        """Compute the distribution of that token without drawing one, float32 `[vocab]`."""
        seen = self._seen_with(drafts)
        return _normalized(sampling_distribution(logits, seen, self.sampling))

    def draw(self, distribution: Tensor) -> int:
        """Draw a token from `[vocab]`, which need not be normalized."""
        return int(torch.multinomial(distribution, 1, generator=self.generator))

    def happens(self, probability: float) -> bool:
        """Return True with a probability."""
        device = self.generator.device
        return float(torch.rand(1, generator=self.generator, device=device)) < probability

    def _seen_with(self, drafts: Sequence[int]) -> Tensor:
        if not drafts or self.sampling.repetition_penalty == 1.0:
            return self.seen
        seen = self.seen.clone()
        seen[list(drafts)] = True
        return seen


class Drafter(Protocol):
    """Proposes the next tokens of one answer."""

    def begin(self, batch: Batch, hidden: Tensor, position: int) -> None:
        """Read the prompt.

        Args:
            batch: the prompt as the model has read it, one row.
            hidden: `[1, T, H]`, the model's final hidden states.
            position: position id of the first token of the answer.
        """
        ...

    def propose(self, chooser: Chooser, count: int) -> list[Choice]:
        """Propose up to `count` tokens after the answer so far, which has one at least."""
        ...

    def accept(self, hidden: Tensor, drafts: Sequence[int]) -> None:
        """Learn what the model made of the last proposal.

        Args:
            hidden: `[1, 1 + accepted, H]`, its final hidden states at the token before the drafts
                and at the accepted ones.
            drafts: the accepted drafts. A token of the model's own follows them.
        """
        ...


def verify(chooser: Chooser, logits: Tensor, drafts: Sequence[Choice]) -> tuple[int, int]:
    """Accept drafts one by one until the first that is rejected.

    Args:
        chooser: of the model.
        logits: float32 `[1 + drafts, vocab]`, row i of the token after i drafts.
        drafts: proposed tokens.

    Returns:
        The number of accepted drafts, and the model's own token after them.
    """
    before: list[int] = []
    for row, draft in zip(logits, drafts, strict=False):
        if chooser.is_greedy:
            own = chooser.choose(row, before).token
            if own != draft.token:
                return len(before), own
        else:
            target = chooser.distribution(row, before)
            if not chooser.happens(acceptance(target, draft)):
                return len(before), chooser.draw(residual(target, draft))
        before.append(draft.token)
    return len(before), chooser.choose(logits[len(drafts)], before).token


def acceptance(target: Tensor, draft: Choice) -> float:
    """Return the probability with which a draft is accepted, `min(1, p(x) / q(x))`.

    Args:
        target: p, float32 `[vocab]`, normalized.
        draft: x and q.
    """
    own = float(target[draft.token])
    return own if draft.distribution is None else own / float(draft.distribution[draft.token])


def residual(target: Tensor, draft: Choice) -> Tensor:
    """Return the distribution of the token that replaces a rejected draft, not normalized.

    Args:
        target: p, float32 `[vocab]`, normalized.
        draft: x and q.
    """
    if draft.distribution is None:
        rest = target.clone()
        rest[draft.token] = 0
    else:
        rest = (target - draft.distribution).clamp_min(0)
    # Where p and q are equal up to rounding, nothing remains and a rejection is due to rounding.
    return rest if float(rest.sum()) > 0 else target


def _normalized(distribution: Tensor) -> Tensor:
    return distribution / distribution.sum()


def expected_tokens(accepted: float, drafts: int) -> float:
    """Return the mean number of tokens per pass of the model, `(1 - a^(g+1)) / (1 - a)`.

    arXiv 2211.17192, equation 1, which assumes that drafts are accepted independently.

    Args:
        accepted: a, the share of accepted drafts, 0 to 1.
        drafts: g, drafts per pass.
    """
    return float(sum(accepted**power for power in range(drafts + 1)))
