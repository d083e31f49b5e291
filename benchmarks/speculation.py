"""Speculative decoding on the built-in models gives the texts of plain decoding.

    python benchmarks/speculation.py [--drawings 500] [--work out/speculation]

Answers drawings with and without drafts, greedily, and compares the tokens. Where a pair differs,
it also decodes with drafts that are always wrong: plain decoding, one token per pass, but through
products with as many rows as with drafts. Texts that are equal to that one differ from plain
decoding by the rounding of these products alone; the gap between the two highest scores at the
first different token says how near the choice was. The run resumes: answers of the same commit, or
of one named by --accept, are stored in --work. Writes results/speculation.json and
results/speculation.md. The speed is measured by `speculation_speed.py`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.machine import ROOT, commit, describe, provenance
from common.speculation import DRAFT_TOKENS, FREE, PAIRS, Lab, Pair, Target
from tabulate import tabulate
from torch import Tensor

from vlpress.model.generation import generate
from vlpress.model.processing.inputs import Batch
from vlpress.model.speculation.decoding import Speculated, generate_with_drafts
from vlpress.model.speculation.drafts import Choice, Chooser, Drafter

HERE = Path(__file__).resolve().parent
LONGEST = 64
"""Tokens of an answer at most."""


class WrongDrafter:
    """Proposes the same token again and again, so that passes have several rows and accept none."""

    def __init__(self, token: int) -> None:
        self._token = token

    def begin(self, batch: Batch, hidden: Tensor, position: int) -> None:
        """See `Drafter.begin`."""

    def propose(self, chooser: Chooser, count: int) -> list[Choice]:
        """See `Drafter.propose`."""
        return [Choice(self._token, None)] * count

    def accept(self, hidden: Tensor, drafts: Sequence[int]) -> None:
        """See `Drafter.accept`."""


def answer(lab: Lab, target: Target, index: int, drafter: Drafter) -> Speculated:
    """Answer one drawing with drafts."""
    return generate_with_drafts(
        lab.open(target.model, target.recipe, target.dtype),
        lab.prompts(target.model)[index],
        drafter,
        draft_tokens=DRAFT_TOKENS,
        features=lab.features(target.model, target.dtype, index),
        **limits(lab, target),
    )


def limits(lab: Lab, target: Target) -> dict[str, Any]:
    """Return what ends an answer."""
    if target.free:
        return {"max_new_tokens": FREE, "stop_ids": ()}
    return {"max_new_tokens": LONGEST, "stop_ids": lab.processor(target.model).stop_ids}


def plain(lab: Lab, target: Target, index: int) -> dict[str, Any]:
    """Answer one drawing without drafts; the gap between the two highest scores of each choice."""
    (result,) = generate(
        lab.open(target.model, target.recipe, target.dtype),
        [lab.prompts(target.model)[index]],
        features=[lab.features(target.model, target.dtype, index)],
        return_logits=True,
        **limits(lab, target),
    )
    assert result.logits is not None
    top = result.logits.topk(2, dim=-1).values
    return {"tokens": list(result.token_ids), "gaps": (top[:, 0] - top[:, 1]).tolist()}


def compare(lab: Lab, pair: Pair, index: int, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Answer one drawing with drafts and compare it with plain decoding."""
    result = answer(lab, pair.target, index, lab.drafter(pair, index))
    tokens = list(result.generated.token_ids)
    record: dict[str, Any] = {
        "passes": result.passes,
        "drafted": result.drafted,
        "accepted": result.accepted,
        "tokens": len(tokens) - 1 + int(result.generated.stopped),
        "same": tokens == expected["tokens"],
    }
    if not record["same"]:
        shared = zip(tokens, expected["tokens"], strict=False)
        first = next((i for i, (a, b) in enumerate(shared) if a != b), None)
        first = min(len(tokens), len(expected["tokens"])) if first is None else first
        wrong = answer(lab, pair.target, index, WrongDrafter(0))
        record["gap"] = expected["gaps"][first]
        record["same_as_rows"] = tokens == list(wrong.generated.token_ids)
    return record


def resumed(
    file: Path, count: int, make: Callable[[int], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Return stored records, then make and store those that are missing."""
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    records = [json.loads(line) for line in lines]
    yield from records[:count]
    with file.open("a", encoding="utf-8") as out:
        for index in range(len(records), count):
            record = make(index)
            out.write(json.dumps(record) + "\n")
            out.flush()
            yield record


def compare_texts(options: argparse.Namespace) -> dict[str, Any]:
    """Compare all pairs."""
    lab, rows, header = Lab(options.work, options.drawings), [], provenance()
    store = options.work / (options.accept or commit())
    store.mkdir(parents=True, exist_ok=True)
    for pair in PAIRS[: options.pairs]:
        target, name = pair.target, pair.name.replace(" ", "_").replace(";", "").replace(",", "")
        base = target.name.replace(" ", "_").replace(",", "")
        references = resumed(
            store / f"plain-{base}.jsonl", options.drawings, lambda i, t=target: plain(lab, t, i)
        )
        expected = list(references)
        records = list(
            resumed(
                store / f"{name}.jsonl",
                options.drawings,
                lambda i, p=pair, e=expected: compare(lab, p, i, e[i]),
            )
        )
        rows.append({"target": target.name, "draft": pair.draft, **summarize(records)})
        print(rows[-1], flush=True)
    return {**header, "drawings": options.drawings, "rows": rows}


def summarize(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum the records of a pair."""
    sums = {
        key: sum(record[key] for record in records)
        for key in ("passes", "drafted", "accepted", "tokens", "same")  # not the first tokens
    }
    different = [record for record in records if not record["same"]]
    return {
        **sums,
        "accepted_share": sums["accepted"] / max(1, sums["drafted"]),
        "tokens_per_pass": sums["tokens"] / max(1, sums["passes"]),
        "different": len(different),
        "same_as_rows": sum(record["same_as_rows"] for record in different),
        "largest_gap": max((record["gap"] for record in different), default=None),
    }


def markdown(results: Mapping[str, Any]) -> str:
    """Results as Markdown."""
    lines = [
        "# Texts of speculative decoding",
        "",
        describe(dict(results)),
        "",
        f"Greedy answers to {results['drawings']} held-out drawings, {DRAFT_TOKENS} drafts per "
        "pass. *Same*: drawings whose tokens are those of plain decoding. *As with rows*: of "
        "the others, those whose tokens are those of plain decoding through products with as "
        "many rows. *Gap*: largest difference of the two highest scores where a text "
        "first differs.",
        "",
        tabulate(list(map(text_row, results["rows"])), TEXT_HEADS, tablefmt="github"),
    ]
    return "\n".join(lines) + "\n"


TEXT_HEADS = [
    *("target", "draft", "tokens", "same", "different", "as with rows", "gap"),
    *("accepted", "tokens per pass"),
]


def text_row(row: Mapping[str, Any]) -> list[Any]:
    """Cells of one pair."""
    gap = row["largest_gap"]
    return [
        *(row[key] for key in ("target", "draft", "tokens", "same", "different")),
        row["same_as_rows"] if row["different"] else "",
        "" if gap is None else f"{gap:.3f}",
        f"{100 * row['accepted_share']:.1f} %",
        f"{row['tokens_per_pass']:.2f}",
    ]


def main() -> None:
    """Compare, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drawings", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="the first ones only")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "speculation")
    parser.add_argument("--accept", help="commit whose stored answers are taken")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "speculation.json")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    results = compare_texts(options)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
