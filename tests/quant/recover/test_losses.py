"""Losses of answers against their formulas."""

from __future__ import annotations

import pytest
import torch

from vlpress.calib import stored_logprobs
from vlpress.calib.stored_logprobs import LogProbs, pack_logprobs, unpack_logprobs
from vlpress.quant.recover.losses import cross_entropy, divergence, mixed_divergence


def rows(seed: int, vocabulary: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(5, vocabulary, generator=generator)).log_softmax(-1)


def full(logprobs: torch.Tensor) -> LogProbs:
    return LogProbs(logprobs, None, None)


def test_divergence_is_kl_and_zero_for_equal_models() -> None:
    expected, given = rows(0), rows(1)
    kl = (expected.exp() * (expected - given)).sum(-1).mean()
    assert divergence(full(expected), given + 7) == pytest.approx(float(kl), rel=1e-5)
    assert float(divergence(full(expected), expected)) == pytest.approx(0, abs=1e-6)


def test_lumped_divergence_is_that_of_merged_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_logprobs, "TOP", 6)
    expected, given = rows(2), rows(3)
    teacher = unpack_logprobs(pack_logprobs(expected, "lumped"), "lumped")
    assert teacher.ids is not None and teacher.ids.shape == (5, 6)
    p, q = (torch.gather(r, -1, teacher.ids).exp().double() for r in (expected, given))
    p, q = (torch.cat((m, 1 - m.sum(-1, keepdim=True)), -1) for m in (p, q))
    kl = float((p * (p.log() - q.log())).sum(-1).mean())
    assert float(divergence(teacher, given)) == pytest.approx(kl, abs=2e-3)
    assert kl <= float(divergence(full(expected), given))


def test_rows_of_padding_are_left_out() -> None:
    expected, given = rows(4, 44), rows(5, 40)
    common = expected[:, :40].log_softmax(-1)
    assert float(divergence(full(expected), given)) == pytest.approx(
        float(divergence(full(common), given)), rel=1e-5
    )
    assert float(divergence(full(common), rows(6, 44))) >= 0


def test_several_teachers_pull_as_their_mean() -> None:
    logits = rows(7).requires_grad_()
    one, two = rows(8), rows(9)
    mixed = mixed_divergence([(full(one), 0.25), (full(two), 0.75)], logits)
    mean = (0.25 * one.exp() + 0.75 * two.exp()).log()
    gradients = [
        torch.autograd.grad(loss, logits)[0] for loss in (mixed, divergence(full(mean), logits))
    ]
    torch.testing.assert_close(*gradients)


def test_cross_entropy_is_that_of_the_answer() -> None:
    logits, tokens = rows(10), torch.tensor([3, 1, 4, 1, 5])
    expected = -logits[torch.arange(5), tokens].mean()
    assert float(cross_entropy(tokens, logits)) == pytest.approx(float(expected), rel=1e-5)
