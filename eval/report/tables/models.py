"""Tables of the two models: size and speed, layers and setup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....model.part_names import BYTE_PARTS
from ...tasks import PLACES, REASONING
from ...tasks.generated.reasoning import NONE
from ..provenance import describe_evaluation, describe_generation
from ..sections.speed import SpeedRow, speed_rows
from ..words.sentences import describe_samples
from . import formatting as fmt
from .columns import (
    Column,
    DataTable,
    Row,
    at,
    or_unknown,
)

Report = Mapping[str, Any]
LARGEST_ERRORS = 10  # layers in the table of errors
_PER_SECOND = fmt.Format(fmt.number, "{:.2f}".format, "{:.2f}".format)

_SHARE = fmt.Format("{:.1%}".format, "{:.2%}".format, "{:.2%}".format)

COST = (
    Column("", at("name"), style="name"),
    Column("base", at("base")),
    Column("candidate", at("candidate")),
    Column("candidate / base", at("ratio")),
)


def cost_table(report: Report) -> DataTable:
    """Size, memory and speed; a quantity that neither evaluation recorded has no row."""
    sizes, memory = report["size"], report["memory"]
    bits = or_unknown(sizes["bits_per_weight"], fmt.fixed(2))
    rows = [
        _byte_row("weights on disk", sizes["base_bytes"], sizes["candidate_bytes"]),
        *_part_rows(sizes),
        {"name": "bits per weight", "candidate": bits},
    ]
    rows += _memory_rows(memory)
    rows += [
        {
            "name": row.label,
            "base": or_unknown(row.base, _PER_SECOND),
            "candidate": or_unknown(row.candidate, _PER_SECOND),
            "ratio": _speed_ratio(row),
        }
        for row in speed_rows(report["speed"])
        if row.base or row.candidate
    ]
    rows += _draft_rows(report.get("drafts", {}))
    return DataTable("Size, memory and speed", COST, rows)


def _draft_rows(drafts: Report) -> list[dict[str, Any]]:
    """Drafts of multi-token prediction that each model accepts along its own answers."""
    rows = []
    for how, name in (("greedy", "greedy"), ("sampled", "sampling")):
        base, candidate = ((drafts.get(side) or {}).get(how) for side in ("base", "candidate"))
        if base is not None or candidate is not None:
            rows.append(
                {
                    "name": f"accepted drafts (MTP, {name})",
                    "base": or_unknown(base, _SHARE),
                    "candidate": or_unknown(candidate, _SHARE),
                    "ratio": fmt.ratio(candidate, base),
                }
            )
    return rows


def _part_rows(sizes: Report) -> list[dict[str, Any]]:
    """Bytes by part, without parts that neither model has; none if one model's are unknown."""
    before, after = sizes.get("base_parts"), sizes.get("candidate_parts")
    if not before or not after:
        return []
    sides = ((part, before.get(part, 0), after.get(part, 0)) for part in BYTE_PARTS)
    # A head that was tied has no bytes of its own before.
    return [_byte_row(f"of which {part}", *of) for part, *of in sides if any(of)]


def _memory_rows(memory: Report) -> list[dict[str, Any]]:
    """Peak memory in alternation, or else that of both evaluations, which have no ratio."""
    if measured := memory["alternating"]:
        sides = measured["base"], measured["candidate"]
        return [_byte_row("peak memory", *(side["peak_bytes"] for side in sides))]
    peaks = [memory[side].get("peak_bytes") for side in ("base", "candidate")]
    if peaks == [None, None]:
        return []
    # One process may have held both models.
    return [{**_byte_row("peak memory, each in its own evaluation", *peaks), "ratio": None}]


def _byte_row(name: str, base: int | None, candidate: int | None) -> dict[str, Any]:
    cells = {"base": or_unknown(base, fmt.BYTES), "candidate": or_unknown(candidate, fmt.BYTES)}
    return {"name": name, **cells, "ratio": fmt.ratio(candidate, base)}


def _speed_ratio(row: SpeedRow) -> str | None:
    if row.ratio is None or row.spread is None:
        return None
    low, high = row.spread
    return f"{row.ratio:.2f}× ({low:.2f} to {high:.2f})"


_ERROR = fmt.Format("{:.1e}".format, "{:.1e}".format, "{:.2e}".format)
_GROUP = fmt.Format(lambda size: "row" if size == -1 else str(size), str, str)
LAYERS = (
    Column("layer", at("name"), style="name"),
    Column("bits", at("bits"), fmt.COUNT),
    Column("group", at("group_size"), _GROUP, "Weights that share a scale."),
    Column("method", at("method"), style=""),
    Column("error", at("final_error"), _ERROR,
           "Squared error of the layer's output over the calibration samples, relative to the "
           "squared output."),
    Column("error of rounding", at("rtn_error"), _ERROR, "The same with plain rounding."),
    Column("fallback", lambda r: r.get("fallback") or r.get("fallback_rows") or None,
           note="Reason why the whole layer was rounded, or the number of rows for which the "
           "solver was no better than rounding."),
)  # fmt: skip


def layer_table(layers: Sequence[Row]) -> DataTable | None:
    """The layers with the largest known error; None if no error is known."""
    measured = [layer for layer in layers if layer.get("final_error") is not None]
    worst = sorted(measured, key=lambda layer: -layer["final_error"])[:LARGEST_ERRORS]
    return DataTable("Layers with the largest error", LAYERS, worst) if worst else None


_SIZE = fmt.Format("{:.3g}".format, "{:.3g}".format, "{:.3g}".format)
_RATIO = fmt.Format("{:.1f}".format, "{:.1f}".format, "{:.1f}".format)
KV_RANGES = (
    Column("model", at("side"), style="name"),
    Column("layer", at("layer"), fmt.COUNT),
    Column("outlier ratio", at("key_outlier_ratio"), _RATIO,
           "Magnitude of the largest channel of the keys over that of the median channel, in the "
           "KV head where it is largest."),
    Column("head", at("head"), fmt.COUNT, "That KV head."),
    Column("channel", at("channel"), fmt.COUNT, "Its largest channel."),
    Column("largest key", at("key_max"), _SIZE, "After the rotary embedding."),
    Column("largest value", at("value_max"), _SIZE),
)  # fmt: skip


def kv_range_table(report: Report) -> DataTable | None:
    """Ranges of keys and values in the models with a quantized KV cache; None without any."""
    sides: Report = report.get("kv_cache", {})
    rows = [
        {"side": side, **layer}
        for side, cache in sides.items()
        for layer in (cache or {}).get("layers", ())
    ]
    return DataTable("Keys and values in the KV cache", KV_RANGES, rows) if rows else None


SETUP = (
    Column("", lambda r: r[0], style="name"),
    Column("", lambda r: r[1], style="value"),
)


def setup_table(report: Report) -> DataTable:
    """Identity of both models, and the setup they share."""
    fingerprint = report["fingerprint"]
    shared = fingerprint["setup"]
    pixels, versions = shared.get("pixels", {}), shared.get("versions", {})
    rows = [
        ("base", f"{report['base']} ({_identity(fingerprint['base'])})"),
        ("candidate", f"{report['candidate']} ({_identity(fingerprint['candidate'])})"),
        *_quantization(report),
        ("evaluated", describe_evaluation(report["evaluated"])),
        ("device and dtype", f"{shared.get('device')}, {shared.get('dtype')}"),
        ("batch size, seed", f"{shared.get('batch_size')}, {shared.get('seed')}"),
        ("decoding", describe_generation(report["generation"]["evaluated"])),
        *_checkpoint_generation(report["generation"]["checkpoint"]),
        ("image size", f"{pixels.get('min')} to {pixels.get('max')} pixels"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        *((name, _task(task)) for name, task in fingerprint["tasks"].items()),
    ]
    return DataTable("Setup", SETUP, rows)


def _quantization(report: Report) -> list[tuple[str, str]]:
    """Recipe and calibration, if the report has them."""
    rows = []
    if recipe := report.get("recipe"):
        rows.append(("recipe", str(recipe["name"])))
    if calibration := report.get("calibration"):
        rows.append(("calibration", describe_samples(calibration)))
    return rows


def _checkpoint_generation(checkpoints: Report) -> list[tuple[str, str]]:
    """Decoding settings of both checkpoints, in one row if they are equal."""
    texts = {k: describe_generation(v) for k, v in checkpoints.items() if v is not None}
    if len(set(texts.values())) == 1 and len(texts) == len(checkpoints):
        return [("decoding set by the checkpoints, not used", texts["base"])]
    return [(f"decoding set by the {side}, not used", text) for side, text in texts.items()]


def _identity(model: Report) -> str:
    files = (model.get("model") or {}).get("files", {})
    digests = ", ".join(digest[:12] for digest in files.values())
    return f"sha256 {digests}" if digests else "identity unknown"


def _task(task: Report) -> str:
    limit = task.get("limit")
    parts = [
        f"md5 {task.get('md5')}",
        f"{f'a sample of at most {limit}' if limit else 'all questions'}, {task.get('rows')} rows",
        f"prompts {task.get('prompt_style')}",
        f"pixels {task.get('pixels', {}).get('budget')}",
        f"rules {task.get('profile')}",
        f"reasoning {task.get(REASONING, NONE)}",
        f"answers of at most {task.get('max_new_tokens')} tokens",
    ]
    parts += [f"places {task[PLACES]}"] if PLACES in task else []
    return "; ".join(parts + (["grey images"] if task.get("blank_images") else []))
