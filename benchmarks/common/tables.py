"""Result files as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tabulate import tabulate

from .machine import describe
from .rows.row import HELD_OUT_FACTORS, SAMPLE_FACTORS

NAMES = {"builtin-mmbench": "MMBench", "builtin-ocrbench": "OCRBench", "builtin-mmmu": "MMMU"}


def accuracy(results: Mapping[str, Any]) -> str:
    """Format the results of accuracy.py."""
    lines = [
        "# Accuracy of the methods (built-in models, synthetic benchmarks)",
        "",
        describe(dict(results)),
        *other_commits(results),
        "",
        f"{results['samples']} calibration samples, seeds {listed(results['seeds'])}. "
        "KL is the divergence from the baseline in nats per answer token, both in float32, on "
        f"{results['held_out']['samples']} held-out samples ({larger_sets()}): mean over samples "
        "and seeds with its 95 % interval over samples, the smallest and largest mean of a seed, "
        "and the 99th percentile over tokens. Scores in percent are those of the checkpoint of the "
        "first seed, in brackets the paired 95 % interval of the difference from the baseline. "
        "Bits are those of the quantized layers, with scales and zero points. Sizes, where they "
        "were recorded, are MiB of all tensors by part: D decoder, T tower, E embedding, H head; "
        "KiB are those of the quantized layers, as stored and after `vlpress pack`. A difference, "
        "where there is one, is the paired 95 % interval of the difference in KL from the row that "
        "it names; an error of layers is the geometric mean of their relative "
        "output errors on the calibration inputs.",
        "",
        "In every run, on every layer, GPTQ's error before any fallback was at most that of "
        "rounding to nearest on the same grid; otherwise the run fails. The last column counts the "
        "output rows that use rounding to nearest as a fallback, because its error was smaller.",
    ]
    for name, model in results["models"].items():
        for scope in dict.fromkeys(row["scope"] for row in model["rows"]):
            rows = [row for row in model["rows"] if row["scope"] == scope]
            lines += ["", f"## {name}, {scope}", "", accuracy_table(rows, model["base"])]
        if model["best"]:
            lines += ["", f"## {name}, best methods", "", *best(model)]
    return "\n".join(lines) + "\n"


def larger_sets() -> str:
    """Sentence on the settings with more samples."""
    more = listed(
        f"{times} times as many at {setting}" for setting, times in SAMPLE_FACTORS.items()
    )
    return f"{more} with the decoder alone; {listed(HELD_OUT_FACTORS)}: 4 times as many"


def other_commits(results: Mapping[str, Any]) -> list[str]:
    """Sentence on rows of earlier commits, empty without any."""
    rows = [row for model in results["models"].values() for row in model["rows"]]
    others = [row for row in rows if row["commits"] != [results["commit"]]]
    commits = {commit for row in others for commit in row["commits"]} - {results["commit"]}
    if not others:
        return []
    return [
        f"{len(others)} of the {len(rows)} rows are, at least in part, of "
        f"{listed(sorted(commits))}; nothing that they depend on has changed since. "
        "The JSON file lists them."
    ]


def accuracy_table(rows: Iterable[Mapping[str, Any]], base: Mapping[str, Any]) -> str:
    """One line per row, the baseline first."""
    rows = list(rows)
    sized = any(row.get("parts") for row in rows)
    head = ["setting", "method", "KL", "seeds", "p99", "top-1"]
    head += [f"{NAMES[name]} (n {entry['n']})" for name, entry in base.items()]
    packed = any("bytes" in row for row in rows)
    sizes = ["KiB", "KiB packed", "bits packed"] if packed else []
    compared = any("beside" in row for row in rows)
    head += ["difference"] if compared else []
    of_layers = any("layer_error" in row for row in rows)
    head += ["error of layers"] if of_layers else []
    head += ["bits", *sizes, *(["MiB by part"] if sized else []), "fell back"]
    original = ["bf16", "", "", "", "", ""]
    original += [f"{entry['score']:.1f}" for entry in base.values()]
    original += [""] * (compared + of_layers)
    body = [[*original, "16", *([""] * (len(sizes) + sized)), ""]] if base else []
    for row in rows:
        body.append(
            [
                row["setting"],
                row["method"],
                *divergence(row["held_out"]),
                *(score(row["benchmarks"].get(name)) for name in base),
                *([difference(row.get("beside"))] if compared else []),
                *([f"{row.get('layer_error', 0):.2e}"] if of_layers else []),
                f"{row['bits_per_weight']:.2f}" if row["bits_per_weight"] else "float",
                *(packed_cells(row.get("bytes")) if packed else []),
                *([mebibytes(row.get("parts"))] if sized else []),
                f"{row['fallback_rows']} of {row['solved_rows']}" if row["solved_rows"] else "",
            ]
        )
    return tabulate(body, head, tablefmt="github", disable_numparse=True)


def difference(beside: Mapping[str, Any] | None) -> str:
    """Paired interval of the difference in KL from another row; empty if there is none."""
    if beside is None:
        return ""
    low, high = beside["ci95"]
    return f"[{low:+.5f}, {high:+.5f}] from {beside['row']}"


def packed_cells(size: Mapping[str, int] | None) -> list[str]:
    """KiB of the quantized layers as stored and packed, and packed bits per weight."""
    if size is None or not size["weights"]:
        return ["", "", ""]
    kibibytes = (f"{size[key] / 2**10:.0f}" for key in ("stored", "packed"))
    return [*kibibytes, f"{8 * size['packed'] / size['weights']:.2f}"]


def mebibytes(parts: Mapping[str, int] | None) -> str:
    """Sizes of a checkpoint's parts; empty if they were not recorded."""
    shown = {name: size / 2**20 for name, size in (parts or {}).items() if size >= 2**10}
    return " ".join(f"{name[0].upper()} {size:.2f}" for name, size in shown.items())


def best(model: Mapping[str, Any]) -> list[str]:
    """The chosen methods, and those that the validation set cannot distinguish from them."""
    body = [
        [
            row["scope"],
            row["setting"],
            row["method"],
            listed(name for name in row["runoff"] if name != row["method"]),
            divergence(row["held_out"])[0],
        ]
        for row in model["best"]
    ]
    head = ["scope", "setting", "chosen", "after a run-off with", "KL on the held-out set"]
    return [tabulate(body, head, tablefmt="github", disable_numparse=True)]


def divergence(summary: Mapping[str, Any]) -> list[str]:
    """Table cells of a summary: mean with interval, range over seeds, p99, top-1."""
    low, high = summary["ci95"]
    seeds = summary["kl_seeds"]
    return [
        f"{summary['kl_mean']:.5f} [{low:.5f}, {high:.5f}]",
        f"{min(seeds):.5f}-{max(seeds):.5f}" if len(seeds) > 1 else "",
        f"{summary['kl_p99']:.4f}",
        f"{100 * summary['top1_agreement']:.2f} %",
    ]


def ablations(results: Mapping[str, Any]) -> str:
    """Format the results of ablations.py."""
    lines = [
        f"# Choices in calibration at {results['setting']} (built-in models)",
        "",
        describe(dict(results)),
        "",
        f"{results['samples']} calibration samples, seeds {listed(results['seeds'])}. KL from the "
        f"baseline in nats per answer token, both in float32, on "
        f"{results['validation']['samples']} validation samples, for the choice, and on "
        f"{results['held_out']['samples']} held-out ones: mean over samples and seeds with its "
        "95 % interval over samples, and the smallest and largest mean of a seed. The last column "
        "is the paired interval of the difference from the method's first row, held out.",
    ]
    head = ["method", "varied", "KL, validation", "seeds", "KL, held out", "seeds", "difference"]
    for name, rows in results["models"].items():
        body = [
            [
                row["method"],
                row["changed"],
                *divergence(row["validation"])[:2],
                *divergence(row["held_out"])[:2],
                "[{:+.5f}, {:+.5f}]".format(*row["from_default"]),
            ]
            for row in rows
        ]
        table = tabulate(body, head, tablefmt="github", disable_numparse=True)
        lines += ["", f"## {name}", "", table]
    return "\n".join(lines) + "\n"


def score(entry: Mapping[str, Any] | None) -> str:
    """Score of a benchmark; empty if the row has none."""
    if entry is None:
        return ""
    low, high = entry["ci95"]
    return f"{entry['candidate']:.1f} [{low:+.1f}, {high:+.1f}]"


def listed(values: Iterable[object]) -> str:
    """Values joined by commas."""
    return ", ".join(map(str, values))
