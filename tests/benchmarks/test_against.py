"""Comparison of the rows of vlpress with those of the peers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from common.divergence import Divergence
from peers.against import EQUIVALENT, best, equivalent_pairs, sections
from peers.measure import STORED, stored_runs
from peers.settings import LLM_COMPRESSOR, METHODS, Job


def row(setting: str, method: str, kl: float, validation: float, **more: Any) -> dict[str, Any]:
    held_out = {"kl_mean": kl, "ci95": [kl / 2, 2 * kl], "samples": 512}
    chosen = {"validation": {"kl_mean": validation}, "held_out": held_out}
    return {"setting": setting, "method": method, "scope": "decoder", **chosen, **more}


OURS = [
    row("w4a16", "gptq", 2.0, 0.3),
    row("w4a16", "gptaq", 1.0, 0.1),
    row("w4a16", "gptq", 9.0, 0.01, scope="decoder+vision"),
    row("w3a16", "gptq", 5.0, 0.5),
]
THEIRS = [
    row("w4a16", "gptq", 3.0, 0.2, peer="a"),
    row("w4a16", "gptq-mse", 4.0, 0.1, peer="a"),
    row("w4a16", "autoround", 2.5, 0.4, peer="b"),
    row("w8a8", "rtn", 1.0, 0.1, peer="a"),
]


def test_equivalent_methods_are_compared() -> None:
    [pair] = equivalent_pairs(OURS, THEIRS)
    assert (pair["setting"], pair["ours"], pair["theirs"]) == ("w4a16", "gptq", "gptq-mse")
    assert pair["ratio"] == pytest.approx(0.5)


def test_stored_runs_give_the_interval_of_the_paired_difference(tmp_path: Path) -> None:
    own = row("w4a16", "gptq", 2.0, 0.3, seeds=[0, 1])
    other = row("w4a16", "gptq-mse", 2.5, 0.3, seeds=[0, 1], model="tiny", peer="llmcompressor")
    jobs = []
    for seed in (0, 1):
        out = tmp_path / "theirs" / str(seed)
        jobs.append(
            Job("tiny", "llmcompressor", "w4a16", "gptq-mse", seed, tmp_path, tmp_path, "", out)
        )
        theirs = Divergence([[1.0, 3.0 + seed], [4.0], [2.0]], [[True, True], [True], [True]])
        ours = Divergence([[1.0, 2.0 + seed], [3.5], [1.5]], theirs.top1)
        folder = tmp_path / "ours" / "tiny" / "w4a16" / "gptq" / f"seed{seed}"
        for path, cell in ((out / STORED, theirs), (folder / "cell.json", ours)):
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps({"held_out": cell.to_dict()}))
    runs = stored_runs(jobs, tmp_path / "ours")
    [pair] = equivalent_pairs([own], [other], runs)
    assert pair["difference"] == pytest.approx([-0.5, -0.5])  # of every sample
    assert "[-0.50000, -0.50000]" in sections("tiny", [own], [other], runs)[1]
    assert stored_runs(jobs, tmp_path)(own, other) is None


def test_best_is_chosen_on_the_validation_set_and_reported_on_the_held_out_set() -> None:
    pairs = {pair["peer"]: pair for pair in best(OURS, THEIRS)}
    assert (pairs["a"]["ours"], pairs["a"]["theirs"]) == ("gptaq", "gptq-mse")
    assert pairs["a"]["ratio"] == pytest.approx(0.25)
    assert pairs["b"]["ratio"] == pytest.approx(0.4)
    assert {pair["setting"] for pair in pairs.values()} == {"w4a16"}


def test_runoff_overrules_the_validation_set() -> None:
    raced = [
        row("w4a16", "gptq", 2.0, 0.3, runoff={"kl_mean": 0.2}),
        row("w4a16", "gptaq", 1.0, 0.1, runoff={"kl_mean": 0.4}),
    ]
    assert {pair["ours"] for pair in best(raced, THEIRS)} == {"gptq"}


def test_winners_are_compared_on_the_final_set() -> None:
    def final(method: str, kl: float, peer: str) -> dict[str, Any]:
        last = {"kl_mean": kl, "ci95": [kl / 2, 2 * kl], "samples": 4096}
        return row("w4a16", method, 9.0, 0.1, peer=peer, final=last)

    [pair] = best([final("gptaq", 3.0, "")], [final("gptq", 4.0, "a")])
    assert (pair["ratio"], pair["samples"]) == (pytest.approx(0.75), 4096)
    [pair] = best([final("gptaq", 3.0, "")], [row("w4a16", "gptq", 9.0, 0.1, peer="a")])
    assert (pair["ratio"], pair["samples"]) == (pytest.approx(1.0), 512)


def test_different_samples_are_an_error() -> None:
    theirs = row("w4a16", "rtn", 3.0, 0.2, peer="a")
    theirs["held_out"]["samples"] = 2048
    with pytest.raises(ValueError, match=r"w4a16 .* 512 .* 2048 .*--held-out"):
        equivalent_pairs([row("w4a16", "rtn", 2.0, 0.3)], [theirs])


def test_sections_show_both() -> None:
    text = "\n".join(sections("tiny", OURS, THEIRS))
    assert "## tiny: equivalent methods" in text
    assert (
        "| w4a16     | 512       | gptaq     | 1.00000 [0.50000, 2.00000] | a      | gptq-mse"
        in text
    )


def test_equivalent_methods_are_methods_of_the_peers() -> None:
    peer_methods = {method for methods in METHODS[LLM_COMPRESSOR].values() for method in methods}
    assert set(EQUIVALENT) <= peer_methods
