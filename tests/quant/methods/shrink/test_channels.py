import pytest
import torch

from vlpress.quant.methods.shrink.channels import channel_scores, choose_channels


def test_wanda_is_the_mean_squared_output_of_a_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 8, generator=generator)
    inputs = torch.randn(40, 8, generator=generator)
    hessian = inputs.T @ inputs / len(inputs)
    scores = channel_scores(weight, "wanda", energies=hessian.diagonal())
    outputs = [inputs[:, [j]] @ weight[:, [j]].T for j in range(8)]
    expected = torch.stack([(y.square().sum(1)).mean() for y in outputs])
    torch.testing.assert_close(scores, expected)


def test_magnitude_ignores_the_inputs() -> None:
    weight = torch.tensor([[3.0, 0.0, 1.0], [4.0, 2.0, 1.0]])
    assert channel_scores(weight, "magnitude").tolist() == [25.0, 4.0, 2.0]
    energies = torch.tensor([0.0, 10.0, 1.0])
    assert channel_scores(weight, "wanda", energies=energies).tolist() == [0.0, 40.0, 2.0]


def test_random_scores_depend_on_the_seed_alone() -> None:
    a, b = torch.zeros(2, 50), torch.ones(3, 50)
    first = channel_scores(a, "random", seed="0 model.layers.1")
    assert torch.equal(first, channel_scores(b, "random", seed="0 model.layers.1"))
    for other in ("1 model.layers.1", "0 model.layers.2"):
        assert not torch.equal(first, channel_scores(a, "random", seed=other))


def test_score_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="wanda needs calibration samples"):
        channel_scores(torch.ones(2, 2), "wanda")


def test_chosen_channels_are_in_their_order_and_ties_go_to_the_first() -> None:
    assert choose_channels(torch.tensor([1.0, 5.0, 5.0, 9.0, 5.0]), 3).tolist() == [1, 2, 3]
    assert choose_channels(torch.zeros(6), 6).tolist() == list(range(6))
