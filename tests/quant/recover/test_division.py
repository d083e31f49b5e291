"""Held-out samples share no image with the training samples."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from vlpress.calib.samples.sample import Sample
from vlpress.quant.recover.division import divide


def sample(number: int, color: int | None = None) -> Sample:
    parts: list[dict[str, Any]] = [{"type": "text", "text": f"question {number}"}]
    if color is not None:
        parts.insert(0, {"type": "image", "image": Image.new("RGB", (4, 4), (color, 0, 0))})
    return Sample([{"role": "user", "content": parts}], "answer", str(number))


def test_a_share_is_held_out_whatever_the_ids() -> None:
    samples = [sample(number) for number in range(40)]
    division = divide(samples, 0.2)
    assert len(division.held_out) == 8
    assert sorted((*division.training, *division.held_out)) == list(range(40))
    renamed = [Sample(s.messages, s.answer, f"other {s.id}") for s in samples]
    assert divide(renamed, 0.2) == division


def test_an_image_is_on_one_side() -> None:
    samples = [sample(number, color=number % 5) for number in range(30)]
    division = divide(samples, 0.3)
    sides = [{number % 5 for number in side} for side in (division.training, division.held_out)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_one_sample_is_held_out_at_least() -> None:
    assert len(divide([sample(0), sample(1)], 0.01).held_out) == 1
    with pytest.raises(ValueError, match="the 3 samples share their images; allowed: at least two"):
        divide([sample(number, color=1) for number in range(3)], 0.5)
