"""Greedy max-min diversity."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vlpress.model.token_reduction.divprune import diverse_tokens


def directions(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def plain_greedy(features: Tensor, count: int) -> list[int]:
    """The rule of arXiv 2503.02175 written out over a table of distances in float64."""
    unit = F.normalize(features.double(), dim=-1)
    cosines = unit @ unit.T
    distance = (1 - torch.maximum(cosines, cosines.T)).tolist()
    everyone = range(len(features))
    alone = [min((distance[i][j] for j in everyone if j != i), default=0) for i in everyone]
    chosen = [max(everyone, key=lambda i: alone[i])]
    while len(chosen) < count:
        others = [i for i in everyone if i not in chosen]
        chosen.append(max(others, key=lambda i: min(distance[i][j] for j in chosen)))
    return sorted(chosen)


def test_first_token_is_the_most_isolated_one() -> None:
    assert diverse_tokens(directions(0, 5, 60, 10), 1).tolist() == [2]


def test_of_two_equally_isolated_tokens_the_first_is_taken() -> None:
    for seed in range(50):
        pair = torch.randn(2, 64, generator=torch.Generator().manual_seed(seed))
        assert diverse_tokens(torch.cat([pair, pair[1:]]), 1).tolist() == [0]
        assert diverse_tokens(pair, 1).tolist() == [0]


def test_further_tokens_are_the_farthest_from_the_chosen() -> None:
    # 2 is isolated; 0 is farthest from it; then 1, 45 degrees from 0, before 3 at 10 degrees.
    assert diverse_tokens(directions(0, 45, 120, 10), 2).tolist() == [0, 2]
    assert diverse_tokens(directions(0, 45, 120, 10), 3).tolist() == [0, 1, 2]


def test_equal_tokens_are_taken_in_order() -> None:
    assert diverse_tokens(torch.ones(5, 4), 3).tolist() == [0, 1, 2]
    assert diverse_tokens(torch.ones(1, 4), 1).tolist() == [0]


@given(st.integers(1, 12), st.integers(0, 10_000), st.data())
def test_result_is_that_of_the_plain_algorithm(tokens: int, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, tokens))
    features = torch.randn(tokens, 6, generator=torch.Generator().manual_seed(seed))
    assert diverse_tokens(features, count).tolist() == plain_greedy(features, count)
