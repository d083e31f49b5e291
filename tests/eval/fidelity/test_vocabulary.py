"""Divergences between an original and a model with a pruned vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy  # type: ignore[import-untyped]  # scipy has no annotations

from vlpress.eval.fidelity.divergences import (
    are_comparable,
    divergences,
    find_kl_kind,
    summarize_fidelity,
)
from vlpress.eval.fidelity.logprob_cache import BaseLogProbs
from vlpress.eval.fidelity.measure import compare_across, compare_answer
from vlpress.eval.fidelity.teacher_forcing import ForcedAnswer
from vlpress.eval.fidelity.vocabulary import find_common_tokens
from vlpress.eval.report.words.divergence import vocabulary_caveats
from vlpress.quant.vocabulary.kept_tokens import KeptTokens

KEPT = KeptTokens((0, 2, 3, 6), rows=8)
TOKENS = [2, 6, 3]


def logits(rows: int, columns: int, seed: int) -> torch.Tensor:
    return 2 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def base_of(tokens: list[int], top: int | None = None, ended: bool = False) -> BaseLogProbs:
    rows, ids = logits(len(tokens), 8, seed=0).log_softmax(-1), torch.tensor(tokens)
    said = rows.gather(-1, ids[:, None])[:, 0]
    if top is None:
        return BaseLogProbs(rows, None, None, ids, said, {}, ended)
    best = rows.topk(top, dim=-1)
    rest = 1 - best.values.exp().sum(-1)
    return BaseLogProbs(best.values, best.indices, rest, ids, said, {}, ended)


def candidate_of(tokens: list[int]) -> ForcedAnswer:
    ids = KEPT.to_new(torch.tensor(tokens))
    return ForcedAnswer(logits(len(tokens), 4, seed=1), ids, None, False)


def test_full_divergence_is_over_the_common_tokens() -> None:
    base, candidate = base_of(TOKENS), candidate_of(TOKENS)
    record = compare_across(base, candidate, KEPT)
    p = base.logprobs.exp().double().numpy()[:, list(KEPT.ids)]
    q = candidate.logits.softmax(-1).double().numpy()
    # scipy normalizes both.
    assert np.allclose(record["kl"], entropy(p, q, axis=1), rtol=1e-4)
    assert np.allclose(record["removed_mass"], 1 - p.sum(axis=1), atol=1e-6)
    said = [q[row, KEPT.new_ids[token]] for row, token in enumerate(TOKENS)]
    expected = np.array(said) - base.token_logprobs.exp().double().numpy()
    assert np.allclose(record["dp"], expected, atol=1e-6)
    best = [KEPT.new_ids.get(int(i)) for i in base.logprobs.argmax(-1)]
    assert record["top1"] == [int(a == int(b)) for a, b in zip(best, q.argmax(1), strict=True)]
    assert record["common"] == "full"


def test_lumped_divergence_is_over_the_common_ones_of_the_likeliest() -> None:
    base, candidate = base_of(TOKENS, top=4), candidate_of(TOKENS)
    record = compare_across(base, candidate, KEPT)
    assert base.ids is not None
    for row, ids in enumerate(base.ids.tolist()):
        places = [place for place, token in enumerate(ids) if token in KEPT.new_ids]
        p = base.logprobs[row, places].exp().double().numpy()
        q = candidate.logits[row, [KEPT.new_ids[ids[place]] for place in places]].softmax(-1)
        assert record["kl"][row] == pytest.approx(entropy(p, q.double().numpy()), abs=1e-5)
    assert record["common"] == "lumped"
    # With every token among the likeliest, both kinds agree.
    everything = compare_across(base_of(TOKENS, top=8), candidate, KEPT)
    assert everything["kl"] == pytest.approx(compare_across(base_of(TOKENS), candidate, KEPT)["kl"])


def test_the_same_scores_for_common_tokens_have_no_divergence() -> None:
    base = base_of(TOKENS)
    same = ForcedAnswer(base.logprobs[:, list(KEPT.ids)] + 3, KEPT.to_new(base.tokens), None, False)
    record = compare_across(base, same, KEPT)
    assert max(record["kl"]) < 1e-6
    # Where the base prefers a removed token, the candidate cannot agree.
    assert record["top1"] == [int(int(i) in KEPT.ids) for i in base.logprobs.argmax(-1)]


def test_an_answer_with_removed_tokens_is_left_out_and_counted() -> None:
    left_out = compare_across(base_of([2, 5, 4]), candidate_of(TOKENS), KEPT)
    assert left_out["left_out"] == 2 and left_out["kl"] == [] and left_out["end"] is None
    compared = compare_across(base_of(TOKENS, ended=True), candidate_of(TOKENS), KEPT)
    assert compared["end"].keys() == {"kl", "top1", "dp", "removed_mass"}
    summary = summarize_fidelity([left_out, compared])
    assert summary is not None
    assert (summary["tokens"], summary["kl_kind"]) == (2, "common")
    assert summary["vocabulary"] == {
        "answers": 2,
        "answers_left_out": 1,
        "removed_mass": pytest.approx(np.mean(compared["removed_mass"])),
    }
    [text] = vocabulary_caveats({"fidelity": summary})
    assert "over the tokens that both vocabularies have" in text
    assert "1 of 2 answers are left out" in text
    assert vocabulary_caveats({"fidelity": None}) == []
    assert summarize_fidelity([left_out]) is None


def test_kinds_over_different_tokens_are_not_compared() -> None:
    across = [compare_across(base_of(TOKENS), candidate_of(TOKENS), KEPT)]
    lumped = [compare_across(base_of(TOKENS, top=4), candidate_of(TOKENS), KEPT)]
    assert find_kl_kind(across) == "common"
    assert find_kl_kind([*across, *lumped]) == "common_lumped"
    assert divergences(across[0], "common") == across[0]["kl"]
    assert are_comparable("full", "lumped") and are_comparable("common", "common")
    assert not are_comparable("common", "full")
    assert not are_comparable("common", "common_lumped")


def test_other_ids_and_other_vocabularies_are_refused() -> None:
    other = ForcedAnswer(logits(3, 4, seed=1), torch.tensor([0, 1, 2]), None, False)
    with pytest.raises(ValueError, match="tokenizer makes other tokens"):
        compare_across(base_of(TOKENS), other, KEPT)
    larger = KeptTokens(KEPT.ids, rows=9)
    with pytest.raises(ValueError, match=r"the base has 8 logits and .* pruned from 9"):
        compare_across(base_of(TOKENS), candidate_of(TOKENS), larger)
    # Without a map, equal ids of unequal vocabularies are no reason to compare them.
    same_ids = ForcedAnswer(logits(3, 4, seed=1), torch.tensor(TOKENS), None, False)
    with pytest.raises(ValueError, match="the base has 8 logits per token and the candidate 4"):
        compare_answer(base_of(TOKENS), same_ids)


def test_the_map_is_needed_where_the_vocabularies_differ(tmp_path: Path) -> None:
    pruned: dict[str, Any] = {"vocabulary": {"kept": 4}}
    assert find_common_tokens({}, {}, None) is None
    assert find_common_tokens(pruned, pruned, tmp_path) is None
    for base, candidate in ((pruned, {}), ({"vocabulary": {"kept": 5}}, pruned), ({}, pruned)):
        with pytest.raises(ValueError, match="take the unpruned original for the base"):
            find_common_tokens(base, candidate, tmp_path)
