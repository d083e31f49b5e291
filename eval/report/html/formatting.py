"""Numbers and verdicts as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MINUS = "\u2212"
MEASURED = ("PASS", "INCONCLUSIVE", "FAIL")

Report = Mapping[str, Any]


@dataclass(frozen=True)
class VerdictWords:
    """A verdict in words: what it says, what it rests on, and what to do."""

    word: str  # PASS, INCONCLUSIVE or FAIL
    title: str
    reason: str
    advice: str


def number(value: float, digits: int = 1) -> str:
    """A number with a true minus sign; no negative zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int = 1) -> str:
    """A difference: `+1.2`, `−1.2`, `0.0`."""
    text = number(value, digits)
    return f"+{text}" if round(value, digits) > 0 else text


def interval(bounds: Sequence[float], digits: int = 1) -> str:
    """An interval of differences: `−1.2 to +0.3`."""
    return f"{signed(bounds[0], digits)} to {signed(bounds[1], digits)}"


def p_value(p: float) -> str:
    """A p-value to three decimals; those below 0.001 are all alike."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def nats(value: float) -> str:
    """A divergence in nats: four significant digits, or a power of ten below 0.0001."""
    if value == 0 or value >= 1e-4:
        return f"{value:.4f}" if value < 1 else f"{value:.2f}"
    return power(value)


def power(value: float) -> str:
    """A small positive number as `2.4 × 10⁻⁵`."""
    mantissa, exponent = f"{value:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} × 10{raised}"


UNKNOWN = "unknown"  # what a served model does not tell
LOOK = (
    "Look at the answers before asking more questions: a dtype that overflows, a damaged "
    "checkpoint, or a prompt layout or token limit that does not fit."
)


def size(count: float | None) -> str:
    """Bytes with a decimal unit: `8.4 MB`."""
    if count is None:
        return UNKNOWN
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def ratio(part: float | None, whole: float | None) -> str | None:
    """`0.62×`; None without a whole, or where one of them is not known."""
    return f"{part / whole:.2f}×" if whole and part is not None else None


def optional(value: float | None, digits: int = 1) -> str:
    """As `number`, or that it is not known."""
    return UNKNOWN if value is None else number(value, digits)


def count_of(count: int, noun: str, plural: str = "") -> str:
    """`1 question`, `1,164 questions`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def verdict_words(report: Report) -> VerdictWords:
    """Say a report's verdict so that somebody who ships models can act on it."""
    entries: Mapping[str, Report] = report["benchmarks"]
    by = {word: [n for n, e in entries.items() if e["verdict"] == word] for word in MEASURED}
    points = count_points(report["margin"])
    word = report["verdict"]
    if word == "PASS":
        where = "every benchmark" if len(entries) > 1 else listed(by["PASS"])
        return VerdictWords(
            word,
            "The candidate may ship.",
            f"On {where} it is shown to lose less than the {points} allowed.",
            "",
        )
    if word == "FAIL":
        return VerdictWords(
            word,
            "The candidate should not ship.",
            f"It is shown to lose more than the {points} allowed on {listed(by['FAIL'])}.",
            "Quantize with more bits, smaller groups or better calibration samples.",
        )
    unhealthy = {
        name: first for name in by["INCONCLUSIVE"] if (first := _first_reason(entries[name]))
    }
    undecided = [name for name in by["INCONCLUSIVE"] if name not in unhealthy]
    reasons = [f"On {name}, {text}." for name, text in unhealthy.items()]
    advice = [LOOK] if unhealthy else []
    if undecided or not unhealthy:
        reasons.append(
            "The questions do not suffice to tell whether the candidate loses more than the "
            f"{points} allowed on {listed(undecided)}."
        )
        advice.append("Ask more questions" + _unlimited(report) + ", or allow a wider margin.")
    if by["PASS"]:
        reasons.append(f"On {listed(by['PASS'])} it is shown to stay within {points}.")
    title = "Not proven either way yet." if undecided else "The answers cannot support a verdict."
    return VerdictWords(word, title, " ".join(reasons), " ".join(advice))


def _first_reason(entry: Report) -> str | None:
    """The first violated health rule of a benchmark; None where only questions are missing."""
    reasons = [r for r in entry["health_reasons"] if r["rule"] != "few_questions"]
    return str(reasons[0]["text"]) if reasons else None


def count_points(margin: float) -> str:
    """`1 point`, `2 points`, `0.5 points`."""
    return f"{margin:g} point" if margin == 1 else f"{margin:g} points"


def _unlimited(report: Report) -> str:
    tasks = report["fingerprint"]["tasks"].values()
    return " (this run was limited to a sample of them)" if any(t["limit"] for t in tasks) else ""
