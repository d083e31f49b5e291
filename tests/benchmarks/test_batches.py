import pytest
import torch
from batches import lead_of, parting

from vlpress.eval.fidelity.teacher_forcing import ForcedAnswer


def read(logits: list[list[float]], tokens: list[int]) -> ForcedAnswer:
    values = torch.tensor(logits)
    return ForcedAnswer(values, torch.tensor(tokens), values[0], ended=True)


def test_gap_is_that_of_the_first_different_token() -> None:
    alone = read([[3.0, 1.0, 0.0], [2.0, 2.5, 9.0], [0.0, 0.0, 0.0]], [0, 1, 2])
    together = read([[0.0, 0.0, 0.0]] * 2, [0, 0])
    assert parting(alone, together) == pytest.approx(0.5)


def test_answers_without_a_different_token_are_an_error() -> None:
    one = read([[3.0, 1.0]], [0])
    with pytest.raises(ValueError, match="differ"):
        parting(one, one)


def test_lead_of_the_most_likely_token() -> None:
    assert lead_of(read([[3.0, 1.0, 0.0], [2.0, 2.5, 9.0]], [1, 2])).tolist() == [2.0, 6.5]
