"""Results other than the report as console tables; `--json` prints the data instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..common.progress import format_bytes, format_seconds
from ..eval.report.tables.columns import Column, DataTable, Row, at, console_table
from ..eval.report.tables.formatting import SYNTHETIC_NOTE, bounds, fixed, uniform
from ..model.token_reduction.table import describe_rule
from ..quant.recipe.adapter import ADAPTER, describe_adapter
from ..quant.recipe.mask import describe_mask
from ..quant.recipe.recover import NAME as RECOVER
from ..quant.recipe.recover import describe_recovery
from .byte_bars import byte_lines

Result = Mapping[str, Any]

BYTES = uniform(format_bytes)
ERROR = uniform("{:.2e}".format)


def _text_column(head: str, key: str) -> Column:
    return Column(head, at(key), style="")


def _shape(row: Row) -> str:
    return f"{row['out_features']} x {row['in_features']}"


PLAN = (
    _text_column("layer", "name"),
    Column("out x in", _shape, style=""),
    Column("now", at("bytes_before"), BYTES),
    Column("then", at("bytes_after"), BYTES),
    _text_column("fate", "fate"),
)


def plan_table(plan: Result) -> str:
    """Show a plan: every linear layer (of all experts in one row), then sizes, memory and time."""
    rows = plan["rows"]
    linears = [row for row in rows if row["stage"] != "embedding"]
    quantized = sum(row["method"] is not None for row in linears)
    return _with_lines(
        DataTable("Plan", PLAN, joined_experts(rows)),
        f"{quantized} of {len(linears)} linear layers are quantized, "
        f"{plan['bits_per_weight']:.2f} bits per weight in these",
        *_adapter(plan),
        f"checkpoint format: {plan['format']}",
        *_engines(plan["engines"]),
        *_vision_input(plan),
        *_preparations(plan),
        f"tensors: {format_bytes(plan['base_bytes'])} -> {format_bytes(plan['candidate_bytes'])}",
        *byte_lines(plan["base_parts"], plan["candidate_parts"]),
        "after vlpress pack: about "
        f"{format_bytes(sum(plan['estimate']['container_parts'].values()))} to download",
        *_estimate(plan["memory"], plan["estimate"]),
        *_evaluation(plan["evaluation"]),
        _rates(plan["rates"]),
    )


def _adapter(result: Result) -> list[str]:
    """The low-rank adapter, if there is one."""
    return [describe_adapter(result[ADAPTER])] if ADAPTER in result else []


def _vision_input(result: Result) -> list[str]:
    """The rule that drops visual tokens and the largest area of an image, if there are any."""
    rule, area = result.get("visual_tokens"), result.get("max_pixels")
    lines = [] if rule is None else [describe_rule(rule)]
    return lines if area is None else [*lines, f"images: at most {area} pixels"]


def _preparations(result: Result) -> list[str]:
    """One line per change of the whole checkpoint before it is quantized."""
    return [
        f"first, {entry['method']}: {entry['summary']}; tensors: "
        f"{format_bytes(entry['bytes_before'])} -> {format_bytes(entry['bytes_after'])}"
        for entry in result.get("preparations", ())
    ]


def joined_experts(rows: Sequence[Result]) -> list[Result]:
    """Join the rows of a layer of all experts that have the same fate; bytes are added."""
    joined: dict[tuple[str, ...], list[Result]] = {}
    for row in rows:
        before, after = row["name"], ""
        if row["expert"] is not None:
            before, _, after = before.rpartition(f".{row['expert']}.")
        joined.setdefault((before, after, row["fate"]), []).append(row)
    return [
        of_row[0]
        if of_row[0]["expert"] is None
        else {
            **of_row[0],
            "name": f"{before}.*.{after} (experts: {len(of_row)})",
            "bytes_before": sum(row["bytes_before"] for row in of_row),
            "bytes_after": sum(row["bytes_after"] for row in of_row),
        }
        for (before, after, _), of_row in joined.items()
    ]


OUTCOMES = {"loads": "loads in", "refuses": "refused by", "untested": "not tried in"}


def _engines(engines: Sequence[Result]) -> list[str]:
    """One line per outcome: the engines, with the version that was tried."""
    lines = []
    for outcome, phrase in OUTCOMES.items():
        named = [
            f"{e['engine']} {e['version']}" + (f" ({e['note']})" if e["note"] else "")
            for e in engines
            if e["outcome"] == outcome
        ]
        if named:
            lines.append(f"{phrase}: {', '.join(named)}")
    return lines


def _estimate(memory: Result, estimate: Result) -> list[str]:
    """Memory, disk and time that a run needs."""
    samples = (
        f"{estimate['samples']} samples of {estimate['tokens']} tokens in all, "
        f"{estimate['with_images']} of them with images"
    )
    lines = [
        f"peak memory: {format_bytes(estimate['peak_bytes'])}, of which "
        f"{format_bytes(estimate['process_bytes'])} Python and its libraries, "
        f"{format_bytes(memory['block'])} weights read at once, "
        f"{format_bytes(memory['solve'])} to solve the largest layer"
    ]
    if memory["whole"]:
        lines.append(
            f"token weights by gradient need, before that: {format_bytes(memory['whole'])} for the "
            f"model, and {format_bytes(memory['gradient_per_token'])} per token of the longest "
            "sample"
        )
    if experts := estimate["experts"]:
        lines.append(
            f"experts: {experts['experts']} in each of {experts['layers']} layers, for about "
            f"{experts['tokens']:.0f} of {estimate['tokens']} tokens each; those with fewer than "
            f"{experts['floor']} are rounded"
        )
    if not estimate["samples"]:
        samples = "rounding, which needs no calibration samples"
    recovery = ""
    if estimate["recovery_seconds"]:
        recovery = f", {format_seconds(estimate['recovery_seconds'])} of it for recovery"
    return [
        *lines,
        f"disk: {format_bytes(estimate['scratch_bytes'])} while it runs, "
        f"{format_bytes(estimate['output_bytes'])} for the result",
        f"time on this machine: at least {format_seconds(estimate['seconds'])} for "
        f"{samples}{recovery}",
    ]


def _evaluation(evaluation: Result | None) -> list[str]:
    """Time of evaluating both models in `run`."""
    if evaluation is None:
        return ["time of the evaluation: not included; give the benchmarks with --bench"]
    benches = "; ".join(
        f"{name} {format_seconds(entry['seconds'])} for {entry['questions']} questions, answers of "
        f"at most {entry['max_new_tokens']} tokens, reasoning {entry['reasoning_rule']}"
        for name, entry in evaluation["benchmarks"].items()
    )
    return [
        f"time of the evaluation of both models: at least {format_seconds(evaluation['seconds'])} "
        f"({benches})"
    ]


def _rates(rates: Result) -> str:
    """The origin of the rates that times are estimated from."""
    remedy = "; --refresh measures it again" if rates["is_cached"] else ""
    return f"speed of this machine: {rates['origin']}{remedy}"


def _fallback(layer: Row) -> str | None:
    rows = layer.get("fallback_rows")
    return layer.get("fallback") or (f"{rows} rows rounded" if rows else None)


LAYERS = (
    _text_column("layer", "name"),
    _text_column("scheme", "scheme"),
    Column("out x in", _shape, style=""),
    Column("size", at("bytes"), BYTES),
    Column("error", at("final_error"), ERROR),
    Column("error of rounding", at("rtn_error"), ERROR),
    Column("with adapter", at("adapter_error"), ERROR),
    Column("damping", at("damp_percent"), uniform("{:g}".format)),
    Column("zeros", at("zeros"), uniform("{:.1%}".format)),
    Column("fallback", _fallback, style=""),
)


def inspect_table(checkpoint: Result) -> str:
    """Show the layers of a quantized checkpoint, with errors if it stores them."""
    layers, unquantized = checkpoint["layers"], checkpoint["kept"]
    lines = [
        f"{checkpoint['checkpoint']}: {checkpoint['format']}, {len(layers)} quantized layers, "
        f"{format_bytes(checkpoint['bytes'])}"
    ]
    if unquantized:
        lines.append(f"{len(unquantized)} linear layers are kept; --json gives the reasons")
    if prepared := checkpoint.get("preparations"):
        lines.append("prepared before: " + ", ".join(entry["method"] for entry in prepared))
    lines += [describe_mask(mask) for mask in checkpoint.get("masks", ())]
    lines += [describe_recovery(checkpoint[RECOVER])] if RECOVER in checkpoint else []
    lines += _adapter(checkpoint)
    lines += _vision_input(checkpoint)
    lines += byte_lines(checkpoint["base_parts"], checkpoint["parts"])
    return _with_lines(DataTable("Layers", LAYERS, layers), *lines)


def _worst(key: str) -> Callable[[Row], Any]:
    """The largest value of any kernel; None if the layer could not be computed in integers."""
    return lambda row: max((entry[key] for entry in row["kernels"].values()), default=None)


VERIFIED = (
    _text_column("layer", "name"),
    Column("out x in", _shape, style=""),
    Column("rows", at("rows")),
    Column("shifts", lambda r: f"{min(r['shifts'])} to {max(r['shifts'])}", style=""),
    Column("largest difference", _worst("largest_difference")),
    Column("differ", _worst("differing"), uniform("{:.2%}".format)),
    Column("float32 error", _worst("float_error"), ERROR),
    Column("", lambda r: r["problem"] or ("agrees" if r["agrees"] else "DIFFERS"), style=""),
)


def verify_table(result: Result) -> str:
    """Show layers in integer arithmetic beside the kernels; differences in levels of the output."""
    layers, others = result["layers"], Counter(result["others"].values())
    agreeing = sum(layer["agrees"] for layer in layers)
    kernels = sorted({name for layer in layers for name in layer["kernels"]})
    lines = [
        f"{result['checkpoint']}: {agreeing} of {len(layers)} layers with static int8 activations "
        f"agree in integer arithmetic with the kernels {', '.join(kernels)}"
    ]
    if skipped := result["skipped"]:
        lines.append(f"{len(skipped)} such layers are reached by no sample: {', '.join(skipped)}")
    if others:
        schemes = ", ".join(f"{label} ({count})" for label, count in others.most_common())
        lines.append(f"not verified, other linear layers: {schemes}")
    return _with_lines(DataTable("Layers", VERIFIED, layers), *lines)


EXPORT_FILES = (_text_column("file", "file"), Column("size", at("bytes"), BYTES))


def export_table(exported: Result) -> str:
    """Show the files of an export, or the layers of an exported checkpoint."""
    if "export" not in exported:
        return inspect_table(exported)
    files = [{"file": name, **entry} for name, entry in exported["files"].items()]
    return _with_lines(
        DataTable("Files", EXPORT_FILES, files),
        f"{exported['export']}: {exported['format']}",
        *exported.get("notes", ()),
    )


def _packed_share(row: Row) -> float:
    return float(row["packed_bytes"] / max(1, row["bytes"]))


PACKED_TENSORS = (
    _text_column("dtype", "dtype"),
    Column("tensors", at("tensors")),
    Column("size", at("bytes"), BYTES),
    Column("packed", at("packed_bytes"), BYTES),
    Column(
        "share", lambda row: row["packed_bytes"] / max(1, row["bytes"]), uniform("{:.1%}".format)
    ),
)


def packed_table(packed: Result) -> str:
    """Show the sizes of a packed checkpoint, of its tensors by dtype."""
    return _with_lines(
        DataTable("Tensors", PACKED_TENSORS, packed["tensors"]),
        f"{packed['checkpoint']}: {packed['files']} files, {format_bytes(packed['bytes'])} -> "
        f"{format_bytes(packed['packed_bytes'])}",
    )


def unpacked_line(unpacked: Result) -> str:
    """Show the size of an unpacked checkpoint."""
    return f"{unpacked['checkpoint']}: {unpacked['files']} files, {format_bytes(unpacked['bytes'])}"


def imatrix_line(written: Result) -> str:
    """Show the contents of an importance matrix."""
    return (
        f"{written['file']}: {written['entries']} tensors, measured on {written['tokens']} tokens "
        f"of {written['samples']} samples"
    )


def teacher_line(stored: Result) -> str:
    """Show the contents of a store of a teacher."""
    return f"{stored['folder']}: log-probabilities of {stored['samples']} samples, {stored['kind']}"


SCORES = (
    _text_column("benchmark", "name"),
    _text_column("metric", "metric"),
    Column("n", at("n")),
    Column("score", at("score"), fixed(1)),
    Column("95 % interval", at("sampling", "ci95"), bounds(1)),
    Column("unreadable", at("health", "parse_failures")),
    Column("cut off", at("health", "truncated")),
)


def scores_table(scores: Result) -> str:
    """Show the scores of one model, each benchmark with its categories."""
    rows = []
    for name, entry in scores["benchmarks"].items():
        rows.append({"name": name, **entry})
        rows += [{"name": category, **part} for category, part in entry["categories"].items()]
    is_synthetic = any(entry["synthetic"] for entry in scores["benchmarks"].values())
    return _with_lines(
        DataTable("Scores", SCORES, rows),
        *([f"synthetic: {SYNTHETIC_NOTE}"] if is_synthetic else []),
        *(
            f"{name}: KL {entry['kl_mean']:.4f} nats mean, same top token "
            f"{100 * entry['top1_agreement']:.1f} %"
            for name, entry in (scores["fidelity"] or {}).items()
        ),
    )


KERNELS = (
    Column("K x N", lambda r: f"{r['in_features']} x {r['out_features']}", style=""),
    Column("rows", at("rows")),
    Column("layer", at("kind")),
    Column("ms", at("seconds"), uniform(lambda seconds: f"{1000 * seconds:.3f}")),
    Column("times torch bf16", at("speedup"), fixed(2)),
    Column(
        "of read bandwidth",
        lambda r: r["bandwidth_share"] if r["rows"] == 1 else None,
        uniform(lambda share: f"{100 * share:.0f} %"),
    ),
)


def kernels_table(result: Result) -> str:
    """Show kernel times: milliseconds, speed relative to torch's bf16, share of the bandwidth."""
    torch_seconds = {_product(row): row["seconds"] for row in result["rows"] if _is_torch(row)}
    rows = [
        {**row, "speedup": torch_seconds[_product(row)] / row["seconds"]} for row in result["rows"]
    ]
    return _with_lines(
        DataTable("Kernels", KERNELS, rows),
        _bandwidth(result, rows),
    )


def _bandwidth(result: Result, rows: Sequence[Row]) -> str:
    if "device" in result:
        return f"{result['device']}; memory is copied at {_gigabytes(rows)} GB/s"
    return f"{result['threads']} threads; memory is read at {_gigabytes(rows)} GB/s"


def _product(row: Row) -> tuple[int, int, int]:
    """Sizes of a matrix product: K, N and the rows of x."""
    return row["in_features"], row["out_features"], row["rows"]


def _is_torch(row: Row) -> bool:
    return bool(row["kind"] == "torch bf16")


def _gigabytes(rows: Sequence[Row]) -> str:
    """Lowest and highest memory bandwidth in a run, GB/s."""
    rates = [row["bandwidth"] / 1e9 for row in rows]
    return f"{min(rates):.1f} to {max(rates):.1f}"


SPEED = (
    Column("", at("name"), style=""),
    Column("", at("length")),
    Column("rate", at("rate")),
)


def speed_table(result: Result) -> str:
    """Show the speed of a model: prefill and decoding."""
    kernels = ", ".join(f"{name} ({n})" for name, n in result["kernels"].items()) or "none"
    rows = [
        {
            "name": "prompt",
            "length": f"{result['prompt_tokens']} tokens",
            "rate": f"{result['prefill_rate']:.1f} tokens/s",
        },
        {
            "name": "answer",
            "length": f"{1000 * result['token_seconds']:.1f} ms",
            "rate": f"{result['token_rate']:.1f}/s",
        },
    ]
    return _with_lines(
        DataTable("Speed", SPEED, rows),
        f"{result['model']}, {result['dtype']}, {result['threads']} threads, kernels: {kernels}"
        + (", inputs rounded to int8" if result["activations"] else "")
        + (f", head {result['head']}" if result["head"] else "")
        + ("" if result["kv_cache"] == "model" else f", {result['kv_cache']} cache"),
    )


def drafts_line(draft: Result) -> str:
    """Show how many drafts of an answer were accepted."""
    if not draft["drafted"]:
        return f"draft {draft['name']}: nothing was drafted in {draft['passes']} passes"
    return (
        f"draft {draft['name']}: {draft['accepted']} of {draft['drafted']} drafts accepted "
        f"({draft['accepted_share']:.1%}), {draft['tokens_per_pass']:.2f} tokens per pass of the "
        "model"
    )


def split_lines(split: Result) -> str:
    """Show the numbers of a split, what its questions can decide, and the command that uses it."""
    images, questions = split["images"], split["questions"]
    command = f"vlpress run MODEL -o OUT --calib {split['calib']} --bench "
    command += f"{split['bench']}={split['eval']} --calib-samples {questions['calib']}"
    return "\n".join(
        [
            f"{split['calib']}: {images['calib']} images, {questions['calib']} samples",
            f"{split['eval']}: {images['eval']} images, {questions['eval']} questions",
            f"drawn evenly from every {split['spread']}, seed {split['seed']}; no image is in both",
            *(f"warning: {note}" for note in split["broken"]),
            split["advice"],
            "",
            f"next: {command}",
        ]
    )


def _with_lines(table: DataTable, *lines: str) -> str:
    return "\n".join([console_table(table), "", *lines])
