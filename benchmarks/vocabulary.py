"""Vocabulary pruning on the built-in models, and bytes of published sizes: docs/vocabulary.md.

    python benchmarks/vocabulary.py [--models tiny tiny3] [--limit N] [--work DIR]

Tokens are counted on the questions and answers of drawings with another seed than those of the
benchmarks. Every row is a checkpoint, evaluated against the original question by question: pruned
to several sizes, pruned to one of them without counts (`by merge order`), and the unpruned model
with two layers in int8, which saves about as many bytes. Divergences of pruned models are over the
common tokens. Bytes of published sizes are computed from their configs. `--work` keeps checkpoints
and answers, so that an interrupted run resumes. Writes results/vocabulary.json,
results/vocabulary.md, and the tables between the marks of docs/vocabulary.md. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import qwen3_configs
from common.machine import ROOT, describe, provenance
from make_model import config_of
from tabulate import tabulate

import vlpress
from vlpress.calib.samples.synthetic import calibration_samples
from vlpress.model.carried import CarriedTensors
from vlpress.model.config import ModelConfig
from vlpress.quant.prepare.planning import float_parts

BENCHES = ["builtin-mmbench", "builtin-ocrbench"]
SAMPLES, SEED = 2000, 9
"""Drawings whose texts are counted."""
SIZES: tuple[int | None, ...] = (None, 896, 640, 384)
"""Tokens that are kept; None: all that the texts have."""
UNCOUNTED = 640
"""Size that is also reached without counts."""
LAYERS = [f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up")]
"""Rounded to 8 bits, they save about as many bytes as that size. The embedding of the built-in
models is their head too, which no engine takes rounded."""
PUBLISHED: dict[str, Callable[[], dict[str, Any]]] = {
    "Qwen2.5-VL-3B": partial(config_of, "qwen2_5", "3b"),
    "Qwen2.5-VL-7B": partial(config_of, "qwen2_5", "7b"),
    "Qwen2.5-VL-72B": partial(config_of, "qwen2_5", "72b"),
    "Qwen3-VL-2B": partial(qwen3_configs.config_of, "2b"),
    "Qwen3-VL-8B": partial(qwen3_configs.config_of, "8b"),
}
"""The content of config.json by name."""
KEPT = (96000, 64000, 48000, 32000)
STORED = ROOT / "benchmarks" / "results" / "vocabulary.json"
DOCUMENT = ROOT / "docs" / "vocabulary.md"
BEGIN, END = "<!-- begin: benchmarks/vocabulary.py -->", "<!-- end: benchmarks/vocabulary.py -->"


@dataclass(frozen=True)
class Variant:
    """One checkpoint that is compared with the original."""

    label: str
    folder: str
    step: dict[str, Any]
    """The step of its recipe, without texts."""
    counts: bool = True
    """Whether tokens are counted on the texts."""


def variants() -> Iterator[Variant]:
    """All checkpoints, in the order of the table."""
    for size in SIZES:
        label = "all tokens of the texts" if size is None else f"{size} tokens"
        option = {} if size is None else {"tokens": size}
        yield Variant(label, f"pruned-{size}", {"method": "prune_vocab", **option})
    by_order = {"method": "prune_vocab", "tokens": UNCOUNTED}
    yield Variant(f"{UNCOUNTED} tokens, by merge order", "by-order", by_order, counts=False)
    rounded = {"method": "rtn", "bits": 8, "group_size": 128, "targets": LAYERS}
    yield Variant("all tokens, gate_proj and up_proj of layer 0 in int8", "int8", rounded)


def write_texts(folder: Path) -> None:
    """Write the counted texts, the same ones for measuring lengths, and an empty one."""
    for name, seed, count in (("texts", SEED, SAMPLES), ("held-out", SEED + 1, SAMPLES // 10)):
        lines = []
        for sample in calibration_samples(count, seed):
            parts = sample.messages[0]["content"]
            question = "".join(part["text"] for part in parts if part["type"] == "text")
            lines.append(json.dumps({"question": question, "answer": sample.answer}) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (folder / "none.txt").write_text("")


def write_recipe(variant: Variant, work: Path) -> Path:
    """Write the recipe of a variant."""
    step = dict(variant.step)
    if step["method"] == "prune_vocab":
        step["texts"] = [str(work / ("texts.jsonl" if variant.counts else "none.txt"))]
        step["held_out"] = [str(work / "held-out.jsonl")]
    path = work / f"{variant.folder}.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in step.items()]
    path.write_text("\n".join(["[[step]]", *lines, ""]))
    return path


def measure(name: str, limit: int | None, work: Path) -> list[dict[str, Any]]:
    """Evaluate a built-in model, and make, evaluate and compare every variant."""
    asked: dict[str, Any] = {"bench": BENCHES, "limit": limit, "device": "cpu"}
    base = work / name / "base"
    vlpress.evaluate(name, base, **asked)
    rows: list[dict[str, Any]] = []
    for variant in variants():
        folder = work / name / variant.folder
        recipe = str(write_recipe(variant, work))
        made = vlpress.quantize(name, folder / "checkpoint", recipe=recipe, device="cpu")
        vlpress.evaluate(folder / "checkpoint", folder / "eval", reference=base, **asked)
        report = vlpress.compare(base, folder / "eval", folder / "report")
        steps = made.get("preparations") or [{}]
        rows.append({"label": variant.label, **of_report(report), **of_step(steps[0])})
        print(name, json.dumps(rows[-1]), flush=True)
    return rows


def of_report(report: dict[str, Any]) -> dict[str, Any]:
    """Select the figures of a comparison."""
    fidelity = report["fidelity"]
    keys = ("n", "base", "candidate", "delta", "ci95")
    return {
        "base_bytes": report["size"]["base_bytes"],
        "bytes": report["size"]["candidate_bytes"],
        "kl_kind": fidelity["kl_kind"],
        "kl_unit_mean": fidelity["kl_unit_mean"],
        "kl_unit_mean_ci95": fidelity["kl_unit_mean_ci95"],
        "top1_agreement": fidelity["top1_agreement"],
        "vocabulary": fidelity.get("vocabulary"),
        "benchmarks": {
            bench: {key: entry[key] for key in keys}
            for bench, entry in report["benchmarks"].items()
        },
    }


def of_step(step: dict[str, Any]) -> dict[str, Any]:
    """Select the figures of the record of the pruning."""
    keys = ("tokens_before", "tokens_after", "always_kept", "kept_for_texts", "removed_of_texts")
    return {key: step[key] for key in (*keys, "lengths") if key in step}


def published() -> list[dict[str, Any]]:
    """Compute the bytes that published sizes save in bf16."""
    rows = []
    for name, raw in PUBLISHED.items():
        config = ModelConfig.from_dict(raw())
        total = sum(float_parts(config, torch.bfloat16.itemsize, CarriedTensors()).values())
        tables = 1 if config.text.tie_word_embeddings else 2
        row_bytes = config.text.hidden_size * torch.bfloat16.itemsize * tables
        saved = {kept: (config.text.vocab_size - kept) * row_bytes for kept in KEPT}
        rows.append({"model": name, "rows": config.text.vocab_size, "bytes": total, "saved": saved})
    return rows


def model_table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the rows of one model."""
    lines = []
    for row in rows:
        lengths, left = row.get("lengths"), row["vocabulary"]
        cells = ["", "", "", ""]
        if lengths:
            removed, growth = lengths["removed_share"], lengths["growth"]
            cells = [str(row["tokens_after"]), f"{100 * removed:.2f} %", f"{100 * growth:+.1f} %"]
            cells.append(f"{left['answers_left_out']} of {left['answers']}")
        scores = [
            "{:.1f} ({:+.1f} [{:+.1f}, {:+.1f}])".format(
                entry["candidate"], entry["delta"], *entry["ci95"]
            )
            for entry in row["benchmarks"].values()
        ]
        low, high = row["kl_unit_mean_ci95"]
        kl = f"{row['kl_unit_mean']:.4f} [{low:.4f}, {high:.4f}]"
        saved = row["base_bytes"] - row["bytes"]
        lines.append([row["label"], f"{saved / 1024:.0f}", *cells, kl, *scores])
    heads = ["variant", "KiB saved", "tokens", "held-out tokens removed", "longer"]
    heads += ["answers left out", "KL, nats", *BENCHES]
    return tabulate(lines, heads, tablefmt="github", disable_numparse=True)


def published_table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the bytes of published sizes."""
    lines = [
        [
            row["model"],
            f"{row['rows']:,}",
            f"{row['bytes'] / 1e9:.2f}",
            *(
                f"{saved / 1e9:.2f} ({100 * saved / row['bytes']:.1f} %)"
                for saved in row["saved"].values()
            ),
        ]
        for row in rows
    ]
    heads = ["model", "rows", "GB in bf16", *(f"GB saved at {kept:,}" for kept in KEPT)]
    return tabulate(lines, heads, tablefmt="github", disable_numparse=True)


def section(results: dict[str, Any]) -> str:
    """Format all tables with their header."""
    parts = []
    for name, rows in results["models"].items():
        of_bench = rows[0]["benchmarks"]
        counts = ", ".join(f"{bench} {entry['n']}" for bench, entry in of_bench.items())
        base = ", ".join(f"{bench} {entry['base']:.1f}" for bench, entry in of_bench.items())
        parts.append(f"**{name}** (questions: {counts}; the original: {base})")
        parts.append(model_table(rows))
    note = "Published sizes, computed from their configs, nothing was pruned:"
    return "\n\n".join([describe(results), *parts, note, published_table(results["published"])])


def main() -> None:
    """Measure, and write the result files and the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=["tiny", "tiny3"])
    parser.add_argument("--limit", type=int, help="questions of each benchmark; default all")
    parser.add_argument("--work", type=Path, help="kept for resuming; default a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        write_texts(work)
        models = {name: measure(name, options.limit, work) for name in options.models}
    results: dict[str, Any] = {
        **provenance(),
        "limit": options.limit,
        "models": models,
        "published": published(),
    }
    STORED.write_text(json.dumps(results, indent=1) + "\n")
    title = "# Vocabulary pruning (built-in models, synthetic benchmarks)"
    STORED.with_suffix(".md").write_text(f"{title}\n\n{section(results)}\n")
    before, _, rest = DOCUMENT.read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{section(results)}\n\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
