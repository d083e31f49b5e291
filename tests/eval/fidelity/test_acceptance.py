"""The candidate as a draft for the base: overlaps by brute force, and the line of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vlpress.calib.stored_logprobs import lump
from vlpress.eval.fidelity.acceptance import compute_overlap, summarize_acceptance
from vlpress.eval.fidelity.logprob_cache import BaseLogProbs
from vlpress.eval.report.words.drafts import as_draft_text


def stored(logits: Tensor, *, top: int | None = None) -> BaseLogProbs:
    """A base's rows: all tokens, or the likeliest ones and the total of the others."""
    rows, nothing = logits.log_softmax(-1), torch.zeros(len(logits), dtype=torch.int64)
    ids = rest = None
    if top is not None:
        best = rows.topk(top, dim=-1)
        rows, ids = best.values, best.indices
        rest = 1 - rows.exp().sum(-1)
    return BaseLogProbs(rows, ids, rest, nothing, nothing.float(), {}, ended=False)


def by_hand(p: list[float], q: list[float]) -> float:
    return sum(min(one, other) for one, other in zip(p, q, strict=True))


def test_known_overlaps() -> None:
    p, q = [[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], [[0.25, 0.5, 0.25], [0.2, 0.7, 0.1]]
    overlap = compute_overlap(stored(torch.tensor(p).log()), torch.tensor(q).log())
    assert overlap.tolist() == pytest.approx([0.75, 0.9])
    # Without the least likely token: what it has in common is missing.
    lumped = compute_overlap(stored(torch.tensor(p).log(), top=1), torch.tensor(q).log())
    assert lumped.tolist() == pytest.approx([0.25, 0.7])


@given(st.integers(0, 99), st.integers(1, 300), st.integers(1, 7))
def test_overlaps_by_brute_force(seed: int, tokens: int, top: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    base, candidate = 3 * torch.randn(2, tokens, 7, generator=generator)
    full = compute_overlap(stored(base), candidate)
    p, q = base.softmax(-1).tolist(), candidate.softmax(-1).tolist()
    expected = [by_hand(one, other) for one, other in zip(p, q, strict=True)]
    assert full.tolist() == pytest.approx(expected, abs=1e-6)
    lumped = compute_overlap(stored(base, top=top), candidate)
    assert bool((lumped <= full + 1e-6).all())
    if top == 7:
        torch.testing.assert_close(lumped, full)
    same = compute_overlap(stored(base), base + 5)
    torch.testing.assert_close(same, torch.ones(tokens))


def test_rows_of_a_store_are_lumped_as_it_lumps_them() -> None:
    rows = torch.randn(3, 2000).log_softmax(-1)
    values, ids, rest = lump(rows)
    base = BaseLogProbs(values, ids, rest, ids[:, 0], values[:, 0], {}, ended=False)
    overlap = compute_overlap(base, rows)
    torch.testing.assert_close(overlap, 1 - rest, atol=1e-5, rtol=0)


def record(overlap: list[float], top1: list[int], **more: Any) -> dict[str, Any]:
    return {"overlap": overlap, "top1": top1, "kl": [0.0] * len(top1), **more}


def test_records_are_pooled_over_tokens() -> None:
    full = {"kl_lumped": [0.0]}
    records = [record([0.9, 0.5], [1, 0], **full), record([1.0], [1], **full), record([], [])]
    summary = summarize_acceptance(records[:2])
    assert summary is not None
    assert summary["tokens"] == 3 and not summary["is_lower_bound"]
    assert summary["sampled"] == pytest.approx(0.8)
    assert summary["greedy"] == pytest.approx(2 / 3)
    assert summary["expected_tokens"]["sampled"] == pytest.approx((1 - 0.8**5) / 0.2)
    mixed = summarize_acceptance(records)
    assert mixed is not None and mixed["is_lower_bound"]
    assert summarize_acceptance([record([], [])]) is None
    assert summarize_acceptance([*records, {"kl": [0.0], "top1": [1]}]) is None  # stored earlier


def test_the_sentence_of_the_report() -> None:
    draft = summarize_acceptance([record([0.9, 0.7], [1, 1])])
    text = as_draft_text({"fidelity": {"as_draft": draft}})
    assert text == (
        "As a draft for the original: accepted at least 80.0 % of tokens when sampling at "
        "temperature 1 and 100.0 % with greedy decoding, at least 3.36 and 5.00 tokens per pass of "
        "the original with 4 drafts."
    )
    assert as_draft_text({"fidelity": None}) is None
    assert as_draft_text({"fidelity": {"kl_mean": 0.1}}) is None  # a report of an earlier version


def test_a_run_reports_it(finished_run: Path) -> None:
    report = json.loads((finished_run / "report" / "report.json").read_text())
    draft = report["fidelity"]["as_draft"]
    assert draft["tokens"] == report["fidelity"]["tokens"] and not draft["is_lower_bound"]
    assert draft["greedy"] == pytest.approx(report["fidelity"]["top1_agreement"])
    assert 0 < draft["sampled"] <= 1
    for kind in ("md", "html"):
        page = (finished_run / "report" / f"report.{kind}").read_text()
        assert "As a draft for the original: accepted" in page
