"""Acceptance of drafts keeps the model's distribution: enumerated exactly, and counted."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlpress.model.generation import Sampling
from vlpress.model.speculation.drafts import (
    Choice,
    Chooser,
    acceptance,
    expected_tokens,
    residual,
    verify,
)
from vlpress.model.speculation.ngram_drafter import look_up


def chooser(vocabulary: int, sampling: Sampling, seed: int = 0) -> Chooser:
    seen = torch.zeros(vocabulary, dtype=torch.bool)
    return Chooser(sampling, seen, torch.Generator().manual_seed(seed))


def random_distribution(seed: int, vocabulary: int = 6, zeros: int = 1) -> Tensor:
    values = torch.rand(vocabulary, generator=torch.Generator().manual_seed(seed))
    values[torch.randperm(vocabulary, generator=torch.Generator().manual_seed(seed))[:zeros]] = 0
    return values / values.sum()


def after_one_draft(target: Tensor, distribution: Tensor, certain: int | None) -> Tensor:
    """The exact distribution of the token that follows, by enumeration of all drafts."""
    total = torch.zeros_like(target)
    drafts = range(len(target)) if certain is None else [certain]
    for token in drafts:
        weight = 1.0 if certain is not None else float(distribution[token])
        if weight == 0:
            continue
        draft = Choice(token, distribution if certain is None else None)
        accepted = min(1.0, acceptance(target, draft))
        rest = residual(target, draft)
        total[token] += weight * accepted
        total += weight * (1 - accepted) * rest / rest.sum()
    return total


@settings(max_examples=20)
@given(st.integers(0, 500), st.integers(501, 999), st.integers(0, 3))
def test_a_token_has_the_models_distribution(p: int, q: int, zeros: int) -> None:
    target, distribution = random_distribution(p), random_distribution(q, zeros=zeros)
    torch.testing.assert_close(after_one_draft(target, distribution, None), target)
    for certain in range(len(target)):
        torch.testing.assert_close(after_one_draft(target, distribution, certain), target)


@settings(max_examples=20)
@given(st.integers(0, 500), st.integers(501, 999))
def test_a_draft_is_accepted_as_often_as_the_distributions_overlap(p: int, q: int) -> None:
    target, distribution = random_distribution(p), random_distribution(q)
    accepted = sum(
        float(distribution[token]) * min(1.0, acceptance(target, Choice(token, distribution)))
        for token in range(len(target))
        if distribution[token] > 0
    )
    assert accepted == pytest.approx(float(torch.minimum(target, distribution).sum()), abs=1e-6)


def test_sampled_sequences_have_the_models_distribution() -> None:
    """Two drafts, then the tokens that follow: chi-square over all sequences of two tokens."""
    logits = torch.tensor([[0.3, -0.2, 0.1], [-1.0, 0.4, 0.2], [0.0, 0.5, -0.5]])
    targets, draft_rows = logits.softmax(-1), torch.tensor([[1.0, 0, 0.2], [0.1, 0.1, 0.9]])
    counts: Counter[tuple[int, ...]] = Counter()
    own = chooser(3, Sampling(temperature=1.0), seed=4)
    draws = 1200
    for _ in range(draws):
        drafts = [own.choose(row) for row in draft_rows]
        accepted, token = verify(own, logits, drafts)
        tokens = [*(draft.token for draft in drafts[:accepted]), token]
        if len(tokens) == 1:  # the next pass begins with the second token
            tokens.append(own.choose(logits[1]).token)
        counts[tuple(tokens[:2])] += 1
    statistic = 0.0
    for first, second in itertools.product(range(3), repeat=2):
        expected = draws * float(targets[0, first] * targets[1, second])
        statistic += (counts[first, second] - expected) ** 2 / expected
    assert statistic < 26.1  # 0.999 quantile with 8 degrees of freedom


def test_greedy_drafts_are_accepted_up_to_the_first_other_choice() -> None:
    logits = torch.eye(5)[[2, 4, 1, 0]]
    greedy = chooser(5, Sampling())

    def run(*tokens: int) -> tuple[int, int]:
        return verify(greedy, logits, [Choice(token, None) for token in tokens])

    assert run(2, 4, 1) == (3, 0)
    assert run(2, 3, 1) == (1, 4)
    assert run(0, 4, 1) == (0, 2)
    assert run() == (0, 2)


def test_the_repetition_penalty_counts_accepted_drafts() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.5], [2.0, 0.0, 1.5], [2.0, 0.0, 1.5]])
    own = chooser(3, Sampling(repetition_penalty=1.5))
    assert verify(own, logits, [Choice(0, None), Choice(2, None)]) == (2, 0)
    assert verify(own, logits, [Choice(0, None), Choice(0, None)]) == (1, 2)
    assert not own.seen.any()


@pytest.mark.parametrize(("accepted", "drafts"), [(0.0, 4), (0.5, 1), (0.8, 4), (1.0, 3)])
def test_expected_tokens_by_enumeration(accepted: float, drafts: int) -> None:
    total = 0.0
    for outcomes in itertools.product([True, False], repeat=drafts):
        probability, tokens = 1.0, 1
        for outcome in outcomes:
            probability *= accepted if outcome else 1 - accepted
        for outcome in outcomes:
            if not outcome:
                break
            tokens += 1
        total += probability * tokens
    assert expected_tokens(accepted, drafts) == pytest.approx(total)
    if accepted < 1:
        closed = (1 - accepted ** (drafts + 1)) / (1 - accepted)
        assert expected_tokens(accepted, drafts) == pytest.approx(closed)


def test_n_grams_are_looked_up() -> None:
    assert look_up([1, 2, 3, 9, 1, 2], 4) == [3, 9, 1, 2]
    assert look_up([1, 2, 3, 1, 2, 4, 1, 2], 1) == [4]  # the newest occurrence
    assert look_up([7, 2, 5, 8, 2], 2) == [5, 8]  # one token, if no longer n-gram occurred
    assert look_up([1, 2, 3], 4) == []
    assert look_up([1], 4) == []
    assert look_up([6, 1, 6, 2, 6], 3, excluded=[6]) == []
    assert look_up([1, 2, 6, 3, 1], 3, excluded=[6]) == [2]
