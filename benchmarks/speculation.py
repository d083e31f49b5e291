"""Speculative decoding on the built-in models: the same texts as plain decoding, and its speed.

    python benchmarks/speculation.py [--drawings 500] [--work out/speculation]
    python benchmarks/speculation.py --time [--layers 12]

The first form answers drawings with and without drafts, greedily, and compares the tokens. Where a
pair differs, it also decodes with drafts that are always wrong: plain decoding, one token per pass,
but through products with as many rows as with drafts. Texts that are equal to that one differ from
plain decoding by the rounding of these products alone; the gap between the two highest scores at
the first different token says how near the choice was. The run resumes: answers of the same commit,
or of one named by --accept, are stored in --work.

The second form needs an otherwise idle machine. It measures tokens per second of the same pairs at
batch 1, and at the widths of the 3B model, with random weights, the cost of a draft and of a pass
over several rows, from which the speed for a share of accepted drafts follows (arXiv 2211.17192,
theorem 3.8). Writes results/speculation.json and results/speculation.md; each form replaces its own
part.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
import whole_model
from common.divergence import SEEDS
from common.machine import ROOT, commit, describe, provenance
from tabulate import tabulate
from torch import Tensor

import vlpress
from vlpress.calib.samples.draw import load_samples
from vlpress.model.features import Features
from vlpress.model.generation import generate
from vlpress.model.mtp import MultiTokenPredictor
from vlpress.model.processing.inputs import Batch, Prompt
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.model.speculation.decoding import Speculated, generate_with_drafts, read_tokens
from vlpress.model.speculation.drafts import Choice, Chooser, Drafter, expected_tokens
from vlpress.model.speculation.model_drafter import ModelDrafter
from vlpress.model.speculation.mtp_drafter import MtpDrafter
from vlpress.model.speculation.ngram_drafter import NgramDrafter
from vlpress.quant.checkpoint.draft_module import open_predictor
from vlpress.quant.checkpoint.loading import open_model, resolve_folder

HERE = Path(__file__).resolve().parent
DRAFT_TOKENS = 4
LONGEST = 64
"""Tokens of an answer at most."""
FREE = 32
"""Tokens where answers do not end: text after the end of the turn has many near choices."""


@dataclass(frozen=True)
class Target:
    """A model that checks drafts."""

    model: str
    recipe: str | None = None
    dtype: str = "bf16"
    free: bool = False
    """Whether answers continue after the end of the turn."""

    @property
    def name(self) -> str:
        """Name of a row."""
        recipe = f" {self.recipe}" if self.recipe else ""
        return f"{self.model}{recipe}, {self.dtype}" + (f", {FREE} tokens" if self.free else "")


@dataclass(frozen=True)
class Pair:
    """A target and its drafts: a recipe of the same model, `ngram` or `mtp`."""

    target: Target
    draft: str

    @property
    def name(self) -> str:
        """Name of a row."""
        return f"{self.target.name}; {self.draft}"


PAIRS = (
    *(Pair(Target("tiny"), draft) for draft in ("w4a16", "ngram")),
    *(Pair(Target("tiny", "w4a16"), draft) for draft in ("w3a16", "ngram")),
    Pair(Target("tiny", dtype="fp32"), "w4a16"),
    Pair(Target("tiny3.5"), "mtp"),
    Pair(Target("tiny", free=True), "w4a16"),
    Pair(Target("tiny3.5", "w4a16"), "mtp"),
    Pair(Target("tiny", dtype="fp32", free=True), "w4a16"),
    Pair(Target("tiny", dtype="fp32"), "ngram"),
    *(Pair(Target("tiny3.5"), draft) for draft in ("w4a16", "ngram")),
    Pair(Target("tiny3.5", "w4a16"), "ngram"),
    *(Pair(Target("tiny3.5", dtype="fp32"), draft) for draft in ("mtp", "w4a16")),
)


class Lab:
    """The models and drawings, opened once."""

    def __init__(self, work: Path, drawings: int) -> None:
        self._work, self._drawings = work, drawings
        self.open = cache(self._open)
        self.prompts = cache(self._prompts)
        self.features = cache(self._features)
        self.predictor = cache(self._predictor)
        self.processor = cache(self._processor)

    def folder(self, model: str, recipe: str | None) -> Path:
        """Return the checkpoint of a model, quantized unless the recipe is None."""
        if recipe is None:
            return resolve_folder(model)
        out = self._work / f"{model}-{recipe}"
        vlpress.quantize(model, out, recipe=recipe, calib_samples=64)
        return out

    def _open(self, model: str, recipe: str | None, dtype: str) -> QwenVL:
        return open_model(self.folder(model, recipe), device="cpu", dtype=dtype)

    def _processor(self, model: str) -> Processor:
        return Processor.from_folder(resolve_folder(model))

    def _prompts(self, model: str) -> list[Prompt]:
        processor = self.processor(model)
        samples = load_samples(None, n=self._drawings, seed=SEEDS["held_out"])
        return [processor.encode(sample.messages) for sample in samples]

    def _features(self, model: str, dtype: str, index: int) -> list[Features]:
        # The recipes leave the tower in float: all forms of a model have the same features.
        with torch.inference_mode():
            return self.open(model, None, dtype).encode(self.prompts(model)[index].visuals)

    def _predictor(self, target: Target) -> MultiTokenPredictor:
        folder = self.folder(target.model, target.recipe)
        return open_predictor(folder, self.open(target.model, target.recipe, target.dtype))

    def drafter(self, pair: Pair, index: int) -> Drafter:
        """Make the drafter of one drawing."""
        target, prompt = pair.target, self.prompts(pair.target.model)[index]
        model = self.open(target.model, target.recipe, target.dtype)
        config = model.config
        if pair.draft == "ngram":
            placeholders = {config.image_token_id, config.video_token_id}
            return NgramDrafter(prompt.input_ids.tolist(), placeholders)
        if pair.draft == "mtp":
            return MtpDrafter(model, self.predictor(target))
        draft = self.open(target.model, pair.draft, target.dtype)
        features = self.features(target.model, target.dtype, index)
        return ModelDrafter(draft, prompt, config.text.vocab_size, features)


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


def measure_speed(options: argparse.Namespace) -> dict[str, Any]:
    """Measure tokens per second of the pairs in bf16, and the costs at the widths of 3B."""
    lab, rows, header = Lab(options.work, options.timed), [], provenance()
    for pair in PAIRS[: options.pairs]:
        if pair.target.dtype == "bf16" and not pair.target.free:
            rows.append({"target": pair.target.name, "draft": pair.draft, **time_pair(lab, pair)})
            print(rows[-1], flush=True)
    return {
        **header,
        "drawings": options.timed,
        "tokens": FREE,
        "rows": rows,
        "layers": options.layers,
        "costs": measure_costs(options),
    }


def time_pair(lab: Lab, pair: Pair) -> dict[str, float]:
    """Tokens per second with and without drafts, in turns; medians over drawings.

    The time of an answer of one token, prompts included, is subtracted.
    """
    target = Target(pair.target.model, pair.target.recipe, pair.target.dtype, free=True)
    pair = Pair(target, pair.draft)
    model = lab.open(target.model, target.recipe, target.dtype)
    prompts, seconds = lab.prompts(target.model), {"plain": [0.0], "drafts": [0.0]}
    accepted = drafted = 0
    for index in [0, *range(len(prompts))]:  # the first one warms up
        features = lab.features(target.model, target.dtype, index)
        given: dict[str, Any] = {"features": [features], "stop_ids": ()}

        def of_plain(count: int, index: int = index, given: dict[str, Any] = given) -> None:
            generate(model, [prompts[index]], max_new_tokens=count, **given)

        def of_drafts(
            count: int, index: int = index, features: list[Features] = features
        ) -> Speculated:
            return generate_with_drafts(
                model,
                prompts[index],
                lab.drafter(pair, index),
                draft_tokens=DRAFT_TOKENS,
                max_new_tokens=count,
                stop_ids=(),
                features=features,
            )

        seconds["plain"].append(timed(lambda f=of_plain: f(FREE)) - timed(lambda f=of_plain: f(1)))
        seconds["drafts"].append(
            timed(lambda f=of_drafts: f(FREE)) - timed(lambda f=of_drafts: f(1))
        )
        result = of_drafts(FREE)
        accepted, drafted = accepted + result.accepted, drafted + result.drafted
    rates = {name: (FREE - 1) / median(values[2:]) for name, values in seconds.items()}
    return {
        **{f"{name}_tokens_per_second": rate for name, rate in rates.items()},
        "speedup": rates["drafts"] / rates["plain"],
        "accepted_share": accepted / max(1, drafted),
    }


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure_costs(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of passes over 1 and several rows at the widths of 3B, bf16 and w4a16 in turns."""
    folders = whole_model.write_vlpress(options.work, options.layers)
    models = {name: open_model(folder, device="cpu") for name, folder in folders.items()}
    caches = {name: model.new_cache(1, 512) for name, model in models.items()}
    seconds: dict[str, list[float]] = {}

    def read(name: str, rows: int) -> None:
        model, cache_ = models[name], caches[name]
        with torch.inference_mode():
            hidden = read_tokens(model, [17] * rows, cache_.length, cache_)
            model.logits(hidden[0])

    for name in models:
        read(name, 256)
    for round_ in range(options.rounds + 1):
        for name, cache_ in caches.items():
            for rows in (1, DRAFT_TOKENS + 1):
                elapsed = timed(lambda n=name, r=rows: read(n, r))
                cache_.roll_back(rows)
                if round_:  # the first one warms up
                    seconds.setdefault(f"{name}, {rows} rows", []).append(elapsed)
    medians = {name: median(values) for name, values in seconds.items()}
    return {"seconds": medians, "speedups": list(predicted(medians))}


def predicted(seconds: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """Speed of a bf16 target with w4a16 drafts, relative to plain decoding in bf16.

    A pass costs g drafts and one reading of g + 1 rows. A free draft, such as n-grams, costs the
    latter only.
    """
    several = f"{DRAFT_TOKENS + 1} rows"
    for target, draft in (("bf16", "w4a16"), ("bf16", None), ("w4a16", None)):
        one = seconds[f"{target}, 1 rows"]
        cost = 0.0 if draft is None else seconds[f"{draft}, 1 rows"] / one
        verify = seconds[f"{target}, {several}"] / one
        for accepted in (0.5, 0.8, 0.9, 0.95, 0.98):
            tokens = expected_tokens(accepted, DRAFT_TOKENS)
            yield {
                "target": target,
                "draft": draft or "free",
                "accepted": accepted,
                "draft_cost": cost,
                "verify_cost": verify,
                "speedup": tokens / (DRAFT_TOKENS * cost + verify),
            }


def markdown(results: Mapping[str, Any]) -> str:
    """Results as Markdown."""
    lines = ["# Speculative decoding", ""]
    if text := results.get("text"):
        lines += [
            "## Texts",
            "",
            describe(text),
            "",
            f"Greedy answers to {text['drawings']} held-out drawings, {DRAFT_TOKENS} drafts per "
            "pass. *Same*: drawings whose tokens are those of plain decoding. *As with rows*: of "
            "the others, those whose tokens are those of plain decoding through products with as "
            "many rows. *Gap*: largest difference of the two highest scores where a text "
            "first differs.",
            "",
            tabulate(list(map(text_row, text["rows"])), TEXT_HEADS, tablefmt="github"),
            "",
        ]
    if speed := results.get("time"):
        lines += [
            "## Speed",
            "",
            describe(speed),
            "",
            f"Tokens per second at batch 1, answers of {speed['tokens']} tokens without an end, "
            f"medians over {speed['drawings']} drawings; prompts not included.",
            "",
            tabulate(
                [
                    [
                        row["target"],
                        row["draft"],
                        f"{row['plain_tokens_per_second']:.1f}",
                        f"{row['drafts_tokens_per_second']:.1f}",
                        f"{row['speedup']:.2f}",
                        f"{100 * row['accepted_share']:.1f} %",
                    ]
                    for row in speed["rows"]
                ],
                ["target", "draft", "plain", "with drafts", "times", "accepted"],
                tablefmt="github",
                disable_numparse=True,
            ),
            "",
            f"At the widths of Qwen2.5-VL-3B, {speed['layers']} decoder layers, random weights: "
            + "; ".join(f"{n} {1000 * s:.1f} ms" for n, s in speed["costs"]["seconds"].items())
            + f". w4a16 alone is {alone(speed['costs']['seconds']):.2f} times as fast as bf16. "
            "Computed from these costs, for shares of accepted drafts:",
            "",
            tabulate(
                [
                    [row["target"], row["draft"], row["accepted"], f"{row['speedup']:.2f}"]
                    for row in speed["costs"]["speedups"]
                ],
                ["target", "draft", "accepted", "times plain decoding"],
                tablefmt="github",
                disable_numparse=True,
            ),
            "",
        ]
    return "\n".join(lines)


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


def alone(seconds: Mapping[str, float]) -> float:
    """Speed of w4a16 relative to bf16, without drafts."""
    return seconds["bf16, 1 rows"] / seconds["w4a16, 1 rows"]


def main() -> None:
    """Measure one part and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drawings", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="the first ones only")
    parser.add_argument("--time", action="store_true", help="measure the speed, not the texts")
    parser.add_argument("--timed", type=int, default=16, help="drawings whose answers are timed")
    parser.add_argument("--layers", type=int, default=12, help="of the decoder with 3B's widths")
    parser.add_argument("--rounds", type=int, default=20, help="of each cost")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "speculation")
    parser.add_argument("--accept", help="commit whose stored answers are taken")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "speculation.json")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    results = json.loads(options.out.read_text()) if options.out.is_file() else {}
    results["time" if options.time else "text"] = (
        measure_speed(options) if options.time else compare_texts(options)
    )
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
