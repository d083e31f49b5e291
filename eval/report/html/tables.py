"""The tables of a page beside the scores: fidelity, cost, health, layers, setup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..calibration_section import describe_samples
from ..speed_section import SpeedRow, speed_rows
from .formatting import interval, nats, number, optional, p_value, ratio, signed, size
from .scores import bench_cell
from .table import Column, Table, make_table

Report = Mapping[str, Any]

FIDELITY = (
    Column("benchmark", bench_cell, style="name"),
    Column("tokens", lambda r: f"{r[1]['tokens']:,}", "Tokens of the base's answers, the end of "
           "turn apart."),
    Column("mean KL", lambda r: nats(r[1]["kl_mean"]), "Mean divergence of the candidate's "
           "next-token probabilities from the base's, in nats; 0 = the same."),
    Column("× noise floor", lambda r: _multiple(r[1]), "Mean KL as a multiple of what the base "
           "differs from itself when only batch size and dtype change."),
    Column("median", lambda r: nats(r[1]["kl_median"]), "Half of the tokens lie below."),
    Column("p99", lambda r: nats(r[1]["kl_p99"]), "One token in a hundred lies above."),
    Column("largest", lambda r: nats(r[1]["kl_max"]), "The worst single token."),
    Column("same top token", lambda r: f"{number(100 * r[1]['top1_agreement'], 2)} %",
           "How often both models think the same token likeliest."),
    Column("RMS Δp", lambda r: f"{number(100 * r[1]['rms_dp'], 2)} %", "Root mean square of the "
           "change of the answer tokens' probability."),
    Column("mean over questions", lambda r: _unit_mean(r[1]), "Mean of each question's mean, with "
           "its 95 % bootstrap interval: rotations and tokens of a question are not independent."),
    Column("first token", lambda r: r[1]["first_token"] and nats(r[1]["first_token"]["kl_mean"]),
           "Mean divergence of the first token of each answer."),
    Column("end of turn", lambda r: r[1]["end_of_turn"] and nats(r[1]["end_of_turn"]["kl_mean"]),
           "Mean divergence of the token that ends an answer; it is nearly certain, so it is "
           "counted apart."),
)  # fmt: skip


def _multiple(entry: Report) -> str | None:
    times = {kind: floor["multiples"]["kl_mean"] for kind, floor in entry.get("noise", {}).items()}
    known = [f"{ratio(value, 1)} ({kind})" for kind, value in times.items() if value]
    return ", ".join(known) or None


def _unit_mean(entry: Report) -> str:
    bounds = entry["kl_unit_mean_ci95"]
    around = f" ({nats(bounds[0])} to {nats(bounds[1])})" if bounds else ""
    return nats(entry["kl_unit_mean"]) + around


def fidelity(found: Report, benchmarks: Report) -> Table:
    """One row per benchmark and one over all of them."""
    rows = [
        (name, {**entry, "synthetic": benchmarks[name]["synthetic"]})
        for name, entry in found["per_benchmark"].items()
    ]
    return make_table("Divergence from the base", FIDELITY, [*rows, ("all", found)])


GOLD = (
    Column("benchmark", bench_cell, style="name"),
    Column("n", lambda r: r[1]["gold"]["n"], "Questions with options."),
    Column("Δ log p", lambda r: signed(r[1]["gold"]["delta"], 4), "Log-probability of the right "
           "option letter as the first token, candidate minus base, in nats."),
    Column("95 % interval", lambda r: interval(r[1]["gold"]["delta_ci95"], 4)),
    Column("among the letters", lambda r: signed(r[1]["gold"]["choice_delta"], 4), "The same with "
           "the option letters alone."),
    Column("95 % interval", lambda r: interval(r[1]["gold"]["choice_delta_ci95"], 4)),
    Column("p", lambda r: p_value(r[1]["gold"]["p"]), "Paired t-test of the change among the "
           "letters: it moves long before an answer flips."),
)  # fmt: skip


def gold(found: Report, benchmarks: Report) -> Table | None:
    """What became of the right option letters; None where no question has options."""
    rows = [
        (name, {**entry, "synthetic": benchmarks[name]["synthetic"]})
        for name, entry in found["per_benchmark"].items()
        if entry["gold"]
    ]
    return make_table("Right option letters", GOLD, rows) if rows else None


_CHANGED = {"batch": "batches of", "dtype": "dtype"}
_SETUP = {"batch": "batch_size", "dtype": "dtype"}
NOISE = (
    Column("benchmark", bench_cell, style="name"),
    Column("the base with", lambda r: f"{_CHANGED[r[2]]} {r[3][_SETUP[r[2]]]}", style="name"),
    Column("questions", lambda r: r[3]["units"], "A sample, spread over the categories."),
    Column("mean KL", lambda r: nats(r[3]["fidelity"]["kl_mean"]), "Of the base from itself."),
    Column("same top token", lambda r: f"{number(100 * r[3]['fidelity']['top1_agreement'], 2)} %"),
    Column("other answers", lambda r: f"{r[3]['changed_answers']} of {r[3]['answers']}",
           "Answers whose text changed."),
    Column("flips", lambda r: r[3]["flips"], "Questions that became right or wrong."),
    Column("candidate's KL", lambda r: _times(r[3]["multiples"]["kl_mean"]), "As a multiple."),
    Column("candidate's other top tokens", lambda r: _times(r[3]["multiples"]["top1_disagreement"]),
           "As a multiple."),
)  # fmt: skip


def _times(value: float | None) -> str:
    return "no noise" if value is None else f"{number(value)}×"


def noise(found: Report, benchmarks: Report) -> Table | None:
    """How far the base is from itself; None where that was not measured."""
    named = [
        (name, {"synthetic": benchmarks[name]["synthetic"]}, entry["noise"])
        for name, entry in found["per_benchmark"].items()
    ]
    rows = [
        (name, entry, kind, floor)
        for name, entry, floors in [*named, ("all", {}, found["noise"])]
        for kind, floor in floors.items()
    ]
    return make_table("Noise floor: the base against itself", NOISE, rows) if rows else None


COST = (
    Column("", lambda r: r[0], style="name"),
    Column("base", lambda r: r[1]),
    Column("candidate", lambda r: r[2]),
    Column("candidate / base", lambda r: r[3]),
)


def _ratio(row: SpeedRow) -> str | None:
    if row.ratio is None or row.spread is None:
        return None
    low, high = row.spread
    return f"{ratio(row.ratio, 1.0)} ({number(low, 2)} to {number(high, 2)})"


def cost(report: Report) -> Table:
    """Size, memory and speed; what was not measured has no row."""
    sizes, speed, memory = report["size"], report["speed"], report["memory"]
    weights = sizes["base_bytes"], sizes["candidate_bytes"]
    peaks = tuple(memory[side].get("peak_bytes") for side in ("base", "candidate"))
    rows = [("weights on disk", *map(size, weights), ratio(weights[1], weights[0]))]
    rows.append(("bits per weight", None, optional(sizes["bits_per_weight"], 2), None))
    if all(peaks):
        rows.append(("peak memory", *map(size, peaks), ratio(peaks[1], peaks[0])))
    for row in speed_rows(speed):
        if row.base and row.candidate:
            rows.append((row.label, number(row.base), number(row.candidate), _ratio(row)))
    return make_table("Size, memory and speed", COST, rows)


HEALTH = (
    Column("benchmark", bench_cell, style="name"),
    Column("model", lambda r: r[2], style="name"),
    Column("rows", lambda r: f"{r[1]['n_rows']:,}", "Questions asked, rotations included."),
    Column("not readable", lambda r: r[3]["parse_failures"], "Answers that name no option by the "
           "rules; they count as wrong."),
    Column("declined", lambda r: r[3]["refusals"], "Answers that refuse; they count as wrong."),
    Column("cut off", lambda r: r[3]["truncated"], "Answers that reached the token limit: a model "
           "that rambles."),
    Column("empty", lambda r: r[3]["empty"], "Answers without any text."),
    Column("same answer", lambda r: _percent(r[4]["identical"]), "Share of the most common answer; "
           "option letters count as answers."),
    Column("score, lower bound", lambda r: _percent(r[4]["score_lower95"]), "Exact one-sided 95 % "
           "bound; it must be above chance."),
    Column("chance", lambda r: _percent(r[4]["chance"]), "Expected score of guessing: one of the "
           "options, anew for each rotation; 0 for open questions."),
    Column("mean tokens", lambda r: optional(r[3]["mean_tokens"]), "Mean length of an answer."),
)  # fmt: skip


def health(benchmarks: Report) -> Table:
    """Two rows per benchmark: the base and the candidate."""
    rows = [
        (name, entry, side, entry["health"][side], entry["signs"][side])
        for name, entry in benchmarks.items()
        for side in ("base", "candidate")
    ]
    return make_table("Signs of damage in the answers", HEALTH, rows)


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{number(value)} %"


WORST_LAYERS = 10

LAYERS = (
    Column("layer", lambda r: r["name"], style="name"),
    Column("bits", lambda r: r.get("bits")),
    Column("group", lambda r: "row" if r.get("group_size") == -1 else r.get("group_size"),
           "Weights that share a scale."),
    Column("method", lambda r: r.get("method"), style=""),
    Column("error", lambda r: _error(r, "final_error"), "Squared error of the layer's output over "
           "the calibration samples, relative to the output's own square."),
    Column("rounding's error", lambda r: _error(r, "rtn_error"), "The same with plain rounding."),
    Column("fallback", lambda r: r.get("fallback") or r.get("fallback_rows") or None, "Rows that "
           "were rounded because the solver did no better, or why the whole layer was."),
)  # fmt: skip


def _error(layer: Report, key: str) -> str | None:
    return f"{layer[key]:.1e}" if layer.get(key) is not None else None


def worst_layers(layers: Sequence[Report]) -> Table:
    """The layers with the largest known error."""
    known = [layer for layer in layers if layer.get("final_error") is not None]
    worst = sorted(known, key=lambda layer: -layer["final_error"])[:WORST_LAYERS]
    return make_table("Layers with the largest error", LAYERS, worst)


SETUP = (
    Column("", lambda r: r[0], style="name"),
    Column("", lambda r: r[1], style="value"),
)


def setup(report: Report) -> Table:
    """What both evaluations shared and which models they were, in short."""
    found = report["fingerprint"]
    shared = found["setup"]
    pixels, versions = shared.get("pixels", {}), shared.get("versions", {})
    rows = [
        ("base", f"{report['base']} ({_identity(found['base'])})"),
        ("candidate", f"{report['candidate']} ({_identity(found['candidate'])})"),
        *_making(report),
        ("device and dtype", f"{shared.get('device')}, {shared.get('dtype')}"),
        ("batch size, seed", f"{shared.get('batch_size')}, {shared.get('seed')}"),
        ("picture size", f"{pixels.get('min')} to {pixels.get('max')} pixels"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        *((name, _task(task)) for name, task in found["tasks"].items()),
    ]
    return make_table("Setup", SETUP, rows)


def _making(report: Report) -> list[tuple[str, str]]:
    """Recipe and calibration, where whoever made the report knew them."""
    rows = []
    if recipe := report.get("recipe"):
        rows.append(("recipe", str(recipe["name"])))
    if found := report.get("calibration"):
        rows.append(("calibration", describe_samples(found)))
    return rows


def _identity(model: Report) -> str:
    files = (model.get("model") or {}).get("files", {})
    digests = ", ".join(digest[:12] for digest in files.values())
    return f"sha256 {digests}" if digests else "identity unknown"


def _task(task: Report) -> str:
    asked = f"a sample of at most {task['limit']}" if task.get("limit") else "all questions"
    parts = [
        f"md5 {task.get('md5')}",
        f"{asked}, {task.get('rows')} rows",
        f"prompts {task.get('prompt_style')}",
        f"pixels {task.get('pixels', {}).get('budget')}",
        f"rules {task.get('profile')}",
        f"answers of at most {task.get('max_new_tokens')} tokens",
    ]
    return "; ".join(parts + (["grey pictures"] if task.get("blank_images") else []))
