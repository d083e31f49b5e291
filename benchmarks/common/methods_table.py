"""The table of all methods of compression as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from .machine import describe
from .tables import NAMES, difference, divergence, listed, other_commits, score


def page(results: Mapping[str, Any]) -> str:
    """Format the results of `accuracy.py --table methods`."""
    seeds = results["seeds"]
    over = "samples" if len(seeds) == 1 else "samples and seeds"
    lines = [
        "# Every method of compression beside plain integers (built-in models)",
        "",
        describe(dict(results)),
        *other_commits(results),
        "",
        f"{results['samples']} calibration samples, {'seeds' if len(seeds) > 1 else 'seed'} "
        f"{listed(seeds)}. KL is the divergence from the baseline in nats per answer token, both "
        f"in float32, on the same {results['held_out']['samples']} held-out samples for all rows: "
        f"mean over {over} with its 95 % interval over samples, and the 99th percentile over "
        "tokens. Scores in percent are those of the synthetic benchmarks with the checkpoint of "
        "the first seed, in brackets the paired 95 % interval of the difference from the baseline.",
        "",
        "A difference is the paired 95 % interval of the difference in KL from the row that it "
        "names, on the same samples. That is for rotated rows the same without a rotation, for "
        "rows with training (`>`) their start, and otherwise the plain integers (int2 to int8 in "
        "groups of 128, int3 and int4 in groups of 32, by GPTQ) of nearest size: bytes of all "
        "stored tensors, adapters and the head of a rotated model included, or for masks packed "
        "bytes of the decoder, because zeros are smaller only in a container.",
        "",
        "KiB are those of all tensors of the decoder with its norms, biases and adapters, and of "
        "the head that a rotation separates from the embedding: as stored, and after "
        "`vlpress pack`. Without a packed size no checkpoint format holds the grid, and the stored "
        "size is that of the plan. Bits are those of the quantized layers, with scales, zero "
        "points and adapters.",
        "",
        "In every run, on every layer, GPTQ's error before any fallback was at most that of "
        "rounding to nearest on the same grid; otherwise the run fails. The last column counts the "
        "output rows that use rounding to nearest as a fallback, because its error was smaller.",
    ]
    for name, model in results["models"].items():
        lines += ["", f"## {name}", "", table(model, has_seeds=len(seeds) > 1)]
    return "\n".join(lines) + "\n"


def table(model: Mapping[str, Any], *, has_seeds: bool) -> str:
    """One line per row, the baseline first."""
    base = model["base"]
    columns = ["KL", *(["seeds"] if has_seeds else []), "p99", "top-1"]
    head = ["setting", "method", *columns]
    head += [f"{NAMES[name]} (n {entry['n']})" for name, entry in base.items()]
    head += ["difference in KL", "KiB", "KiB packed", "bits", "fell back"]
    original = ["bf16", "", *("" for _ in columns)]
    original += [f"{entry['score']:.1f}" for entry in base.values()]
    bytes_of = model["base_bytes"]
    original += ["", kibibytes(bytes_of["decoder_stored"]), kibibytes(bytes_of["decoder_packed"])]
    body = [[*original, "16", ""]]
    for row in model["rows"]:
        kl, of_seeds, *others = divergence(row["held_out"])
        body.append(
            [
                *(row["setting"], row["method"]),
                *(kl, *([of_seeds] if has_seeds else []), *others),
                *(score(row["benchmarks"].get(name)) for name in base),
                difference(row.get("beside")),
                kibibytes(row["decoder"]["stored"]),
                kibibytes(row["decoder"]["packed"]),
                f"{row['bits_per_weight']:.2f}" if row["bits_per_weight"] else "float",
                f"{row['fallback_rows']} of {row['solved_rows']}" if row["solved_rows"] else "",
            ]
        )
    return tabulate(body, head, tablefmt="github", disable_numparse=True)


def kibibytes(size: int | None) -> str:
    """A size; empty if it is not known."""
    return "" if size is None else f"{size / 2**10:.0f}"
