"""The comparison of predicted losses with measured divergences."""

from __future__ import annotations

import pytest
import torch
from tiny_models import EACH_FAMILY, make_random_model, make_tiny_config, prompts

from vlpress.common.progress import silent
from vlpress.eval.search.check import DivergenceOf, draw_pairs, rank_correlation
from vlpress.eval.search.run import score_model
from vlpress.quant.driver.padding import pad_model_
from vlpress.quant.search.space import SearchSpace


def test_an_unchanged_model_does_not_diverge_from_itself() -> None:
    model = make_random_model(config=make_tiny_config(tied=False))
    divergence = DivergenceOf(model, prompts(model.config))
    assert divergence.measure(changes_tower=False) == 0
    assert divergence.measure(changes_tower=True) == pytest.approx(0, abs=1e-7)
    model.visual.merger.get_submodule("mlp.2").bias.data.add_(1.0)  # type: ignore[operator]
    assert divergence.measure(changes_tower=False) == 0
    assert divergence.measure(changes_tower=True) > 1e-4


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_choices_are_applied_alone_and_taken_back(family: str) -> None:
    config = make_tiny_config(family, tied=False, text={"num_hidden_layers": 2})
    space = SearchSpace.of(config)
    model = make_random_model(config=config)
    pad_model_(model, space.padding)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    samples = prompts(config)
    scored = score_model(model, space, samples, samples, errors="rtn", checks=6, reporter=silent())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    check = scored.check
    assert check is not None and len(check["pairs"]) == 6 and check["samples"] == 4
    assert check["spearman"] > 0.6
    by_name = {group.name: group for group in space.groups}
    for row in check["pairs"]:
        group = by_name[row["group"]]
        index = [choice.label for choice in group.choices].index(row["choice"])
        assert row["predicted"] == scored.losses[space.groups.index(group)][index] >= 0
        assert row["measured"] >= 0  # 0 of an expert that no token reaches


def test_pairs_are_drawn_from_all_choices_that_quantize() -> None:
    space = SearchSpace.of(make_tiny_config(tied=True))
    pairs = draw_pairs(space.groups, 10**6, seed=0)
    expected = sum(any(choice.schemes) for group in space.groups for choice in group.choices)
    assert len(pairs) == expected
    assert draw_pairs(space.groups, 5, seed=1) == draw_pairs(space.groups, 5, seed=1)
    assert draw_pairs(space.groups, 5, seed=1) != draw_pairs(space.groups, 5, seed=2)
    assert draw_pairs(space.groups, 0, seed=1) == []


def test_rank_correlation_of_known_ranks() -> None:
    def rows(*measured: float) -> list[dict[str, float]]:
        return [{"predicted": float(i), "measured": m} for i, m in enumerate(measured)]

    assert rank_correlation(rows(1, 2, 9)) == pytest.approx(1.0)
    assert rank_correlation(rows(3, 2, 1)) == pytest.approx(-1.0)
    # Ranks 1, 3, 2, 4: 1 - 6 * 2 / (4 * 15)
    assert rank_correlation(rows(1, 5, 3, 8)) == pytest.approx(0.8)
    assert rank_correlation(rows(1)) is None and rank_correlation(rows(2, 2)) is None
