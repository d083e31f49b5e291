"""The part of the Markdown report about divergences, noise and perplexity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .markdown_cells import bounds, escape, table

Report = Mapping[str, Any]
_CHANGED = {"batch": "another batch size", "dtype": "another dtype"}


def fidelity(report: Report) -> str:
    """All sections of it; one sentence where nothing was measured."""
    found, text = report["fidelity"], report["perplexity"]
    if found is None:
        parts = ["## Fidelity\n\nNot measured (no reference given)."]
    else:
        parts = ["## Fidelity", _divergences(found), _gold(found), _noise(found)]
    return "\n\n".join(part for part in [*parts, _perplexity(text)] if part)


def _divergences(found: Report) -> str:
    rows = []
    for name, entry in [*found["per_benchmark"].items(), ("all", found)]:
        first, end = entry["first_token"], entry["end_of_turn"]
        rows.append(
            [
                escape(name),
                entry["tokens"],
                f"{entry['kl_mean']:.5f}",
                f"{entry['kl_median']:.5f}",
                f"{entry['kl_p99']:.4f}",
                f"{entry['kl_max']:.3f}",
                f"{100 * entry['top1_agreement']:.2f} %",
                f"{100 * entry['rms_dp']:.2f} %",
                f"{entry['kl_unit_mean']:.5f} {bounds(entry['kl_unit_mean_ci95'], '.5f')}",
                f"{first['kl_mean']:.5f}" if first else "",
                f"{end['kl_mean']:.5f}" if end else "",
            ]
        )
    head = ["benchmark", "tokens", "mean KL", "median", "p99", "max", "same top token", "RMS Δp"]
    head += ["mean over questions", "first token", "end of turn"]
    kind = (
        "over the full vocabulary"
        if found["kl_kind"] == "full"
        else "over the base's 1024 likeliest tokens and all others as one"
    )
    return table(rows, head) + (
        f"\n\nKL(base ‖ candidate) in nats {kind}, both models reading the base's answers. RMS Δp: "
        "root mean square of the change of the answer tokens' probability."
    )


def _gold(found: Report) -> str:
    rows = [
        [
            escape(name),
            entry["gold"]["n"],
            f"{entry['gold']['delta']:+.4f} {bounds(entry['gold']['delta_ci95'], '+.4f')}",
            f"{entry['gold']['choice_delta']:+.4f} "
            f"{bounds(entry['gold']['choice_delta_ci95'], '+.4f')}",
            f"{entry['gold']['p']:.3g}",
        ]
        for name, entry in found["per_benchmark"].items()
        if entry["gold"]
    ]
    if not rows:
        return ""
    head = ["benchmark", "n", "Δ log p of the gold letter", "among the option letters", "p"]
    return table(rows, head) + (
        "\n\nLog-probability of the right option letter as the first token of the answer, "
        "candidate minus base, in nats; p of the paired t-test of the second difference."
    )


def _noise(found: Report) -> str:
    rows = []
    for name, entry in [*found["per_benchmark"].items(), ("all", found)]:
        for kind, floor in entry["noise"].items():
            own, times = floor["fidelity"], floor["multiples"]
            rows.append(
                [
                    escape(name),
                    f"{_CHANGED[kind]} ({_setup(kind, floor)})",
                    own["tokens"],
                    f"{own['kl_mean']:.2g}",
                    f"{100 * own['top1_agreement']:.2f} %",
                    f"{floor['changed_answers']} of {floor['answers']}",
                    f"{floor['flips']} of {floor['units']}",
                    _times(times["kl_mean"]),
                    _times(times["top1_disagreement"]),
                ]
            )
    if not rows:
        return ""
    head = ["benchmark", "the base with", "tokens", "mean KL", "same top token", "other answers"]
    head += ["flips", "candidate's mean KL", "candidate's other top tokens"]
    return (
        "### Noise floor\n\n"
        + table(rows, head)
        + "\n\nThe base against itself on a sample of the questions; the last two columns are the "
        "candidate's numbers as multiples of that."
    )


def _setup(kind: str, floor: Report) -> str:
    return str(floor["batch_size"] if kind == "batch" else floor["dtype"])


def _times(value: float | None) -> str:
    return "no noise" if value is None else f"{value:.1f} ×"


def _perplexity(found: Report | None) -> str:
    if found is None:
        return ""
    if found["overflow"]:
        nll = found["nll"]
        return (
            f"Perplexity on {found['tokens']} tokens of text is above the largest float; mean "
            f"negative log-probability of a token {nll['base']:.3f} → {nll['candidate']:.3f} nats."
        )
    ratio = f"{found['ratio']:.4f} {bounds(found['ratio_ci95'], '.4f')}".strip()
    return (
        f"Perplexity on {found['tokens']} tokens of text: {found['base']:.3f} → "
        f"{found['candidate']:.3f}, ratio {ratio}."
    )
