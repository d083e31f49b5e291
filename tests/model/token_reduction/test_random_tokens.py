"""The random share of an image's tokens."""

from __future__ import annotations

import pytest
import torch

from vlpress.model.token_reduction.random_tokens import Random, random_tokens
from vlpress.model.token_reduction.rule import Frame, kept_count


def test_known_choice() -> None:
    assert random_tokens(16, 4, "0|abc").tolist() == [1, 8, 9, 15]


def test_seed_and_image_decide() -> None:
    def kept(seed: int, content: str) -> list[int]:
        frame = Frame(torch.ones(64, 2), 8, 8, content)
        return Random(keep=0.5, seed=seed).select(frame).tolist()

    assert kept(0, "a") == kept(0, "a") != kept(1, "a")
    assert kept(0, "a") != kept(0, "b")
    assert kept(0, "a") == sorted(set(kept(0, "a"))) and len(kept(0, "a")) == 32


def test_every_token_is_as_likely() -> None:
    counts = torch.zeros(8)
    for seed in range(2000):
        counts[random_tokens(8, 2, str(seed))] += 1
    assert bool(((counts - 500).abs() < 5 * (2000 * 0.25 * 0.75) ** 0.5).all())


@pytest.mark.parametrize(
    ("keep", "tokens", "count"),
    [(0.5, 16, 8), (0.001, 16, 1), (1, 9, 9), (0.25, 9, 2), (0.9, 1, 1)],
)
def test_kept_count(keep: float, tokens: int, count: int) -> None:
    assert kept_count(keep, tokens) == count
