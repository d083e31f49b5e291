import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlpress.quant.methods.shrink.depth import cosine_sum, drop_layers, random_scores


def test_cosines_of_known_turns() -> None:
    before = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [2.0, 0.0]]])
    after = torch.tensor([[[5.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]])
    assert cosine_sum(before, after) == pytest.approx((0.0, 3.0))
    weights = torch.tensor([2.0, 1.0, 0.0])
    assert cosine_sum(before, after, weights) == pytest.approx((2.0, 3.0))


def test_least_influence_is_dropped_and_the_first_layers_stay() -> None:
    scores = [0.01, 0.5, 0.1, 0.3, 0.2]
    assert drop_layers(scores, 2) == [0, 2]
    assert drop_layers(scores, 2, stays=1) == [2, 4]
    assert drop_layers([0.1, 0.1, 0.1], 1) == [2]


def test_layers_of_a_pattern_are_dropped_in_whole_runs() -> None:
    scores = [0.0, 0.0, 9.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0]
    assert drop_layers(scores, 3, period=3) == [3, 4, 5]
    assert drop_layers(scores, 6, period=3) == [3, 4, 5, 6, 7, 8]
    assert drop_layers(scores, 3, period=3, stays=4) == [6, 7, 8]


def test_too_many_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="3 of 4 layers cannot be dropped; allowed: at most 2"):
        drop_layers([0.0] * 4, 3, stays=2)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=12),
    st.data(),
)
def test_no_layer_that_stays_has_a_smaller_score(scores: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(scores)))
    dropped = drop_layers(scores, count)
    left = [score for index, score in enumerate(scores) if index not in dropped]
    assert len(dropped) == count
    assert max((scores[i] for i in dropped), default=0) <= min(left, default=1)


def test_random_choice_follows_the_seed() -> None:
    assert random_scores(20, 3) == random_scores(20, 3)
    assert random_scores(20, 3) != random_scores(20, 4)
