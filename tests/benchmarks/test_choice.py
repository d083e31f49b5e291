"""Choice of the best method if the validation set is inconclusive."""

from __future__ import annotations

from typing import Any

from common.choice import contenders, winner
from common.divergence import Divergence


def runs(*kl: float) -> list[Divergence]:
    """One run with one token per sample."""
    return [Divergence([[value] for value in kl], [[True]] * len(kl))]


def test_clear_best_needs_no_runoff() -> None:
    measured = {"gptq": runs(0.1, 0.2, 0.1, 0.2), "rtn": runs(0.5, 0.6, 0.6, 0.5)}
    assert contenders(measured) == ["gptq"]


def test_one_bad_sample_does_not_eliminate_a_method() -> None:
    # Better on every sample except one, which dominates the mean.
    lost = runs(*[0.1] * 19, 3.0)
    assert contenders({"awq": lost, "gptq": runs(*[0.2] * 20)}) == ["awq", "gptq"]


def test_differences_are_paired_by_sample() -> None:
    hard = [0.1 * i for i in range(20)]
    worse = [value + 0.01 + 0.001 * (i % 2) for i, value in enumerate(hard)]
    assert contenders({"a": runs(*hard), "b": runs(*worse)}) == ["a"]


def test_equal_methods_are_both_contenders() -> None:
    assert contenders({"a": runs(0.1, 0.2), "b": runs(0.1, 0.2)}) == ["a", "b"]


def test_runoff_decides_if_there_was_one() -> None:
    def row(name: str, validation: float, **more: float) -> dict[str, Any]:
        sets = {name: {"kl_mean": kl} for name, kl in {"validation": validation, **more}.items()}
        return {"method": name, **sets}

    first = [row("a", 1.0), row("b", 2.0)]
    assert (winner(first) or {})["method"] == "a"
    raced = [row("a", 1.0, runoff=4.0), row("b", 2.0, runoff=3.0), row("c", 2.5)]
    assert (winner(raced) or {})["method"] == "b"
    assert winner([]) is None
