"""Results as text tables for people; programs use ``--json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from ..common.progress import format_bytes, format_seconds
from ..eval.report.calibration_section import shown_warnings

SYNTHETIC = "synthetic: the built-in benchmark files are drawings, not the published benchmarks"


def headline(report: Mapping[str, Any]) -> str:
    """Draw a report (``report.json`` as read) as one table with its verdict.

    Scores are percentages; the interval is the two-sided 95 % interval of the paired difference.
    """
    rows = [
        [
            name,
            row["n"],
            f"{row['base']:.1f}",
            f"{row['candidate']:.1f}",
            f"{row['delta']:+.1f}",
            "[{:+.1f}, {:+.1f}]".format(*row["ci95"]),
            f"{row['mcnemar_p']:.3g}",
            f"{row['flips']['right_to_wrong']} / {row['flips']['wrong_to_right']}",
            row["verdict"],
        ]
        for name, row in report["benchmarks"].items()
    ]
    head = [
        "benchmark",
        "n",
        "base",
        "candidate",
        "delta",
        "95 % interval",
        "p",
        "lost / won",
        "verdict",
    ]
    lines = [_table(rows, head), ""]
    if report.get("synthetic"):
        lines.append(SYNTHETIC)
    lines += [f"note: {note}" for note in report.get("notes", ())]
    lines += [*_fidelity(report), *_size(report), *_speed(report)]
    lines += [f"warning: {warning}" for warning in shown_warnings(report.get("calibration"))]
    lines += [f"reason: {reason}" for reason in report.get("verdict_reasons", ())]
    lines.append(f"verdict: {report['verdict']} (margin {report['margin']:g} points)")
    return "\n".join(lines)


def _fidelity(report: Mapping[str, Any]) -> list[str]:
    fidelity = report.get("fidelity")
    if fidelity is None:
        return []
    return [
        f"fidelity: KL {fidelity['kl_mean']:.4f} nats mean, "
        f"{fidelity['kl_p99']:.3f} at the 99th percentile; "
        f"same top token {100 * fidelity['top1_agreement']:.1f} % of {fidelity['tokens']} tokens"
    ]


def _speed(report: Mapping[str, Any]) -> list[str]:
    """Ratios of throughput, where both models were timed in alternation."""
    found = report.get("speed", {}).get("alternating")
    if not found:
        return []
    names = {"items": "questions", "prefill_tokens": "prefill", "decode_tokens": "decode"}
    parts = []
    for name, label in names.items():
        rate = found[f"{name}_per_second"]
        low, high = rate["spread"]
        parts.append(f"{label} {rate['ratio']:.2f} ({low:.2f} to {high:.2f})")
    return [f"speed, candidate / base in alternation: {', '.join(parts)}"]


def _size(report: Mapping[str, Any]) -> list[str]:
    size = report.get("size") or {}
    if not size.get("base_bytes") or not size.get("candidate_bytes"):
        return []
    return [
        f"size: {format_bytes(size['base_bytes'])} -> {format_bytes(size['candidate_bytes'])}"
        f" ({size['bits_per_weight']:.2f} bits per weight)"
    ]


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """Draw ``comparison.json``: one line per candidate and benchmark."""
    rows = [
        [
            name,
            bench,
            f"{row['base']:.1f}",
            f"{row['candidate']:.1f}",
            f"{row['delta']:+.1f}",
            "[{:+.1f}, {:+.1f}]".format(*row["ci95"]),
            row["verdict"],
        ]
        for name, entry in comparison["candidates"].items()
        for bench, row in entry["benchmarks"].items()
    ]
    head = ["candidate", "benchmark", "base", "candidate", "delta", "95 % interval", "verdict"]
    lines = [_table(rows, head), ""]
    lines += [SYNTHETIC] * bool(comparison["synthetic"])
    lines += [
        f"note on {name}: {note}"
        for name, entry in comparison["candidates"].items()
        for note in entry.get("notes", ())
    ]
    lines += [f"reason: {reason}" for reason in comparison.get("verdict_reasons", ())]
    lines.append(f"verdict: {comparison['verdict']} (margin {comparison['margin']:g} points)")
    return "\n".join(lines)


def plan_table(plan: Mapping[str, Any]) -> str:
    """Draw a plan: every linear layer, then sizes and memory."""
    rows = [
        [
            row["name"],
            f"{row['out_features']} x {row['in_features']}",
            format_bytes(row["bytes_before"]),
            format_bytes(row["bytes_after"]),
            row["fate"],
        ]
        for row in plan["rows"]
    ]
    quantized = sum(row["method"] is not None for row in plan["rows"])
    return "\n".join(
        [
            _table(rows, ["layer", "out x in", "now", "then", "fate"], "llrrl"),
            "",
            f"{quantized} of {len(rows)} linear layers are quantized, "
            f"{plan['bits_per_weight']:.2f} bits per weight in these",
            _written_as(plan),
            f"tensors: {format_bytes(plan['base_bytes'])} -> "
            f"{format_bytes(plan['candidate_bytes'])}",
            *_estimate(plan),
        ]
    )


def _estimate(plan: Mapping[str, Any]) -> list[str]:
    """What the run will take."""
    memory, found = plan["memory"], plan["estimate"]
    calibrated = (
        f"{found['samples']} samples of {found['tokens']} tokens in all, "
        f"{found['with_images']} of them with images"
    )
    return [
        f"peak memory: {format_bytes(found['peak_bytes'])}, of which "
        f"{format_bytes(found['process_bytes'])} Python and its libraries, "
        f"{format_bytes(memory['block'])} weights read at once, "
        f"{format_bytes(memory['solve'])} to solve the largest layer",
        *_gradient_memory(memory),
        f"disk: {format_bytes(found['scratch_bytes'])} while it runs, "
        f"{format_bytes(found['output_bytes'])} for the result",
        f"time on this machine: at least {format_seconds(found['seconds'])} for "
        f"{calibrated if found['samples'] else 'rounding, which needs no samples'}",
    ]


def _gradient_memory(memory: Mapping[str, Any]) -> list[str]:
    if not memory["whole"]:
        return []
    each = format_bytes(memory["gradient_per_token"])
    return [
        f"token weights by gradient come before: {format_bytes(memory['whole'])} for the whole "
        f"model, and {each} per token of the longest sample"
    ]


def inspect_table(found: Mapping[str, Any]) -> str:
    """Draw what is in a quantized checkpoint; errors only where it carries them."""
    rows = [
        [
            layer["name"],
            layer["scheme"],
            f"{layer['out_features']} x {layer['in_features']}",
            format_bytes(layer["bytes"]),
            _error(layer, "final_error"),
            _error(layer, "rtn_error"),
            _damping(layer),
            _fallback(layer),
        ]
        for layer in found["layers"]
    ]
    head = [
        "layer",
        "scheme",
        "out x in",
        "size",
        "error",
        "rounding's error",
        "damping",
        "fallback",
    ]
    lines = [
        _table(rows, head, "lllrrrrl"),
        "",
        f"{found['checkpoint']}: {found['format']}, {len(rows)} quantized layers, "
        f"{format_bytes(found['bytes'])}",
    ]
    if found["kept"]:
        lines.append(f"{len(found['kept'])} linear layers are kept; --json says why")
    return "\n".join(lines)


def scores_table(scores: Mapping[str, Any]) -> str:
    """Draw one model's scores, each benchmark with its categories."""
    rows = []
    for name, entry in scores["benchmarks"].items():
        rows.append(
            [
                name,
                entry["metric"],
                entry["n"],
                f"{entry['score']:.1f}",
                entry["health"]["parse_failures"],
                entry["health"]["truncated"],
            ]
        )
        rows += [
            [f"  {category}", "", part["n"], f"{part['score']:.1f}", "", ""]
            for category, part in entry["categories"].items()
        ]
    head = ["benchmark", "metric", "n", "score", "unreadable", "cut off"]
    lines = [_table(rows, head, "llrrrr"), ""]
    lines += [SYNTHETIC] * any(e["synthetic"] for e in scores["benchmarks"].values())
    lines += [
        f"{name}: KL {entry['kl_mean']:.4f} nats mean, same top token "
        f"{100 * entry['top1_agreement']:.1f} %"
        for name, entry in (scores["fidelity"] or {}).items()
    ]
    return "\n".join(lines)


def _written_as(plan: Mapping[str, Any]) -> str:
    why = f", because {plan['passed_over']}" if plan["passed_over"] else ""
    return f"checkpoint format: {plan['format']}{why}"


def _fallback(layer: Mapping[str, Any]) -> str:
    rows = layer.get("fallback_rows")
    return layer.get("fallback") or (f"{rows} rows rounded" if rows else "")


def _damping(layer: Mapping[str, Any]) -> str:
    value = layer.get("damp_percent")
    return "" if value is None else f"{value:g}"


def _error(layer: Mapping[str, Any], key: str) -> str:
    value = layer.get(key)
    return "" if value is None else f"{value:.2e}"


def _table(rows: Sequence[Sequence[Any]], head: Sequence[str], align: str = "") -> str:
    sides = {"l": "left", "r": "right"}
    columns = [sides[letter] for letter in align or "l" + "r" * (len(head) - 1)]
    return tabulate(rows, head, disable_numparse=True, colalign=columns if rows else None)


def _gigabytes(rows: Sequence[Mapping[str, Any]]) -> str:
    """The slowest and fastest reading of memory in a run."""
    found = [row["bandwidth"] / 1e9 for row in rows]
    return f"{min(found):.1f} to {max(found):.1f}"


def kernels_table(result: Mapping[str, Any]) -> str:
    """Draw what `bench kernels` measured: milliseconds, times torch's bf16, share of the limit."""
    rows = result["rows"]
    base = {
        (r["in_features"], r["out_features"], r["rows"]): r["seconds"]
        for r in rows
        if r["kind"] == "torch bf16"
    }
    body = []
    for row in rows:
        key = row["in_features"], row["out_features"], row["rows"]
        body.append(
            [
                f"{key[0]} x {key[1]}",
                row["rows"],
                row["kind"],
                f"{1000 * row['seconds']:.3f}",
                f"{base[key] / row['seconds']:.2f}",
                f"{100 * row['bandwidth_share']:.0f} %" if row["rows"] == 1 else "",
            ]
        )
    head = ["K x N", "rows", "layer", "ms", "times torch bf16", "of read bandwidth"]
    return "\n".join(
        [
            _table(body, head),
            "",
            f"{result['threads']} threads; memory is read at {_gigabytes(rows)} GB/s",
        ]
    )


def speed_table(result: Mapping[str, Any]) -> str:
    """Draw what `bench model` measured."""
    kernels = ", ".join(f"{name} ({n})" for name, n in result["kernels"].items()) or "none"
    body = [
        ["prompt", f"{result['prompt_tokens']} tokens", f"{result['prefill_rate']:.1f} tokens/s"],
        ["answer", f"{1000 * result['token_seconds']:.1f} ms", f"{result['token_rate']:.1f}/s"],
    ]
    return "\n".join(
        [
            _table(body, ["", "", "rate"]),
            "",
            f"{result['model']}, {result['dtype']}, {result['threads']} threads, "
            f"kernels: {kernels}"
            + (", inputs rounded to int8" if result["activations"] else "")
            + (f", head {result['head']}" if result["head"] else "")
            + (", int8 cache" if result["kv_cache"] == "int8" else ""),
        ]
    )
