"""The table of real_model.py as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from .machine import describe

GIB = 2**30
DRY_RUN = (
    "**Dry run: the files are the built-in drawings in the form of the published ones, and the "
    "numbers say nothing.**"
)


def preset_table(results: Mapping[str, Any]) -> str:
    """Format the results: one line per preset, the original first."""
    base, rows = results["base"], results["rows"]
    names = list(base["benchmarks"])
    head = ["preset", "bits", "GiB", *(_title(base["benchmarks"][n], n) for n in names)]
    head += ["KL", "top-1", "verdict", "quantize", "evaluate"]
    first = ["original", "", f"{base['bytes'] / GIB:.2f}"]
    first += [f"{base['benchmarks'][name]['score']:.2f}" for name in names]
    first += ["", "", "", "", _time(base["seconds"]["evaluate"])]
    body = [first] + [_line(row, names) for row in rows]
    lines = [f"# Accuracy of the presets on {results['model']}", "", describe(dict(results)), ""]
    lines += [DRY_RUN, ""] if results["dry_run"] else []
    lines += [
        f"{_settings(results['settings'])} Scores in percent, in brackets the paired 95 % interval "
        "of the difference from the original, then the verdict of the benchmark. KL is the mean "
        "divergence from the original in nats per answer token. A time marked with a plus is a "
        "lower bound, because a session was killed.",
        "",
        tabulate(body, head, tablefmt="github", disable_numparse=True),
    ]
    if results["refused"]:
        lines += ["", "Presets that do not fit the model:", ""]
        lines += [f"- {name}: {reason}" for name, reason in results["refused"].items()]
    return "\n".join(lines) + "\n"


def _title(entry: Mapping[str, Any], name: str) -> str:
    return f"{name} ({entry['metric']}, n {entry['n']})"


def _line(row: Mapping[str, Any], names: list[str]) -> list[str]:
    fidelity = row["fidelity"]
    return [
        row["preset"],
        f"{row['bits_per_weight']:.2f}",
        f"{row['bytes'] / GIB:.2f}",
        *(_score(row["benchmarks"][name]) for name in names),
        f"{fidelity['kl_mean']:.5f}",
        f"{100 * fidelity['top1_agreement']:.2f} %",
        row["verdict"],
        _time(row["seconds"]["quantize"]),
        _time(row["seconds"]["evaluate"]),
    ]


def _score(entry: Mapping[str, Any]) -> str:
    low, high = entry["ci95"]
    return f"{entry['candidate']:.2f} [{low:+.2f}, {high:+.2f}] {entry['verdict']}"


def _time(elapsed: Mapping[str, Any]) -> str:
    seconds = elapsed["seconds"]
    shown = f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
    return shown if elapsed["is_complete"] else f"{shown} +"


def _settings(settings: Mapping[str, Any]) -> str:
    limit = settings["limit"]
    questions = "All questions" if limit is None else f"At most {limit} questions of each benchmark"
    calibration = settings["calib"] or "built-in drawings"
    return (
        f"{questions}, images in the {settings['pixels']} budget, margin {settings['margin']:g} "
        f"points; calibration on {calibration}."
    )
