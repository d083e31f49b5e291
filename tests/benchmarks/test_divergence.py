"""The divergence of benchmarks: zero for equal models, larger with fewer bits."""

import pytest
import torch
from common.divergence import SEEDS, Divergence, Judge, Judges, paired, sample_means, summarize

from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.loading import open_model
from vlpress.quant.driver.pipeline import quantize_
from vlpress.quant.recipe.recipe import Recipe


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge("tiny", SEEDS["held_out"], 6)


def rounded(bits: int) -> QwenVL:
    model = open_model("tiny", device="cpu")
    quantize_(model, Recipe.from_dict({"step": [{"method": "rtn", "bits": bits}]}))
    return model


def test_divergence_of_a_model_from_itself_is_zero(judge: Judge) -> None:
    result = judge.measure(open_model("tiny", device="cpu"))
    assert max(result.means) < 1e-6
    assert all(all(same) for same in result.top1)


def test_answer_tokens_are_measured(judge: Judge) -> None:
    # The model answers its training distribution: the most probable tokens are the answer.
    right = wrong = 0
    for prompt, count, logits in zip(judge.prompts, judge.answers, judge.logits, strict=True):
        assert logits.shape[0] == count >= 1
        predicted = logits.argmax(-1)
        right += int((predicted == prompt.input_ids[-count - 1 : -1]).sum())
        wrong += int((predicted != prompt.input_ids[-count - 1 : -1]).sum())
    assert right > 4 * wrong


def test_fewer_bits_diverge_more(judge: Judge) -> None:
    coarse, fine = judge.measure(rounded(3)), judge.measure(rounded(8))
    assert sum(coarse.means) > 5 * sum(fine.means) > 0


def test_equal_tower_reuses_image_features(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    model = rounded(4)
    given = judge.measure(model)
    with monkeypatch.context() as patch:
        patch.setattr(judge, "tower", {})
        looked = judge.measure(model)
    for mine, other in zip(looked.kl, given.kl, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)


def test_another_tower_computes_its_features(judge: Judge) -> None:
    model = open_model("tiny", device="cpu")
    weight = model.visual.patch_embed.proj.weight
    with torch.no_grad():
        weight.mul_(0.5)
    assert max(judge.measure(model).means) > 1e-3


def test_summary_by_hand() -> None:
    runs = [
        Divergence([[0.0, 0.2], [0.4]], [[True, False], [True]]),
        Divergence([[0.2, 0.2], [0.0]], [[True, True], [True]]),
    ]
    assert sample_means(runs) == pytest.approx([0.15, 0.2])
    result = summarize(runs)
    assert (result["samples"], result["tokens"]) == (2, 3)
    assert result["kl_mean"] == pytest.approx(0.175)
    assert result["kl_seeds"] == pytest.approx([0.25, 0.1])
    assert result["top1_agreement"] == pytest.approx(5 / 6)
    assert result["kl_p99"] == pytest.approx(0.39)


def test_paired_interval_of_the_difference() -> None:
    left = [Divergence([[0.1 + 0.01 * i] for i in range(20)], [[True]] * 20)]
    right = [Divergence([[0.3 + 0.01 * i] for i in range(20)], [[True]] * 20)]
    interval = paired(left, right)
    assert (interval.low, interval.high) == pytest.approx((-0.2, -0.2))


def test_judges_by_set(judge: Judge) -> None:
    candidate = rounded(4)
    result = Judges("tiny").measure(candidate, {"validation": 2, "held_out": 6})
    assert list(result) == ["validation", "held_out"]
    assert result["held_out"] == judge.measure(candidate).to_dict()
    assert len(result["validation"]["kl"]) == 2
    assert result["validation"]["kl"] != result["held_out"]["kl"][:2]
