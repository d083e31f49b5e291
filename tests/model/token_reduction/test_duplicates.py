"""Dropping tokens that repeat a neighbour."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vlpress.model.token_reduction.duplicates import Duplicates, distinct_tokens


def directions(*degrees: float) -> Tensor:
    """Unit vectors in the plane; the cosine of two is that of the difference of their angles."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_one_token_per_region_of_equal_neighbours_is_kept() -> None:
    grid = directions(
        *(0, 0, 90, 90),
        *(0, 0, 90, 0),  # the last one touches no other region of 0 degrees
        *(0, 0, 0, 0),  # it is below: visited later, and represented by its left neighbour
    )
    assert distinct_tokens(grid, 4, 0.98).tolist() == [0, 2, 7]


def test_neighbours_are_of_the_same_row_or_column() -> None:
    assert distinct_tokens(directions(0, 90, 90, 0), 2, 0.98).tolist() == [0, 1, 2, 3]  # diagonals
    assert distinct_tokens(directions(0, 90, 180, 180, 270, 0), 3, 0.98).tolist() == [
        0,
        1,
        2,
        3,
        4,
        5,
    ]


def test_gradient_is_not_one_region() -> None:
    # 10 degrees between neighbours, cosine 0.985: each resembles the next, the first not the third.
    assert distinct_tokens(directions(*range(0, 60, 10)), 6, 0.98).tolist() == [0, 2, 4]


def test_upper_neighbour_counts_where_the_left_one_differs() -> None:
    assert distinct_tokens(directions(0, 90, 180, 90), 2, 0.98).tolist() == [0, 1, 2]


def test_length_of_the_features_does_not_matter() -> None:
    features = directions(0, 0, 90, 90) * torch.tensor([[1.0], [1000.0], [0.001], [5.0]])
    assert distinct_tokens(features, 4, 0.98).tolist() == [0, 2]


def test_token_without_direction_is_kept() -> None:
    assert distinct_tokens(torch.zeros(3, 4), 3, 0.5).tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_threshold_above_1_keeps_everything(dtype: torch.dtype) -> None:
    same = torch.randn(1, 64, generator=torch.Generator().manual_seed(0)).expand(12, -1).to(dtype)
    assert distinct_tokens(same, 4, 1.5).tolist() == list(range(12))
    assert distinct_tokens(same, 4, 1.0).tolist() == list(range(12))
    assert distinct_tokens(same, 4, 0.999).tolist() == [0]


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10_000), st.floats(0.3, 0.99))
def test_every_dropped_token_resembles_a_kept_one(
    height: int, width: int, seed: int, threshold: float
) -> None:
    random = torch.Generator().manual_seed(seed)
    kinds = torch.randn(3, 8, generator=random)
    chosen = torch.randint(0, 3, (height * width,), generator=random)
    features = kinds[chosen] + 0.2 * torch.randn(height * width, 8, generator=random)
    kept = distinct_tokens(features, width, threshold)
    assert kept.dtype == torch.int64 and kept.tolist() == sorted(set(kept.tolist()))
    assert kept[0] == 0
    unit = F.normalize(features, dim=-1)
    best = (unit @ unit[kept].T).amax(1)
    dropped = [index for index in range(height * width) if index not in kept.tolist()]
    assert all(best[index] > threshold - 1e-6 for index in dropped)


def test_default_threshold() -> None:
    assert Duplicates().to_dict() == {"method": "duplicates", "threshold": 0.98}
