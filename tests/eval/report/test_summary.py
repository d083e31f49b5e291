from typing import Any

from vlpress.eval.report.summary import summarize_comparison, summarize_report


def report(**changes: Any) -> dict[str, Any]:
    row = {
        "n": 400,
        "base": 90.0,
        "candidate": 88.25,
        "delta": -1.75,
        "ci95": [-3.5, -0.25],
        "mcnemar_p": 0.0391,
        "flips": {"right_to_wrong": 10, "wrong_to_right": 3, "wrong_to_wrong": 1},
        "verdict": "INCONCLUSIVE",
    }
    return {
        "verdict": "INCONCLUSIVE",
        "margin": 2.0,
        "synthetic": False,
        "benchmarks": {"MMBench_DEV_EN": row},
        "fidelity": None,
        "size": {"base_bytes": 2 << 20, "candidate_bytes": 1 << 20, "bits_per_weight": 8.0},
        **changes,
    }


def test_report_has_scores_interval_flips_and_verdict() -> None:
    lines = summarize_report(report()).splitlines()
    (row,) = [line for line in lines if line.startswith("MMBench_DEV_EN")]
    cells = ["400", "90.0", "88.2", "-1.8", "[-3.5, -0.2]", "0.0391", "10 / 3", "INCONCLUSIVE"]
    positions = [row.index(cell) for cell in cells]
    assert positions == sorted(positions)
    assert "size: 2.0 MiB -> 1.0 MiB (8.00 bits per weight)" in lines
    assert lines[-1] == "verdict: INCONCLUSIVE (margin 2 points)"
    assert not any(line.startswith(("synthetic", "fidelity", "warning")) for line in lines)


def test_report_has_synthetic_note_fidelity_and_warning() -> None:
    fidelity = {"kl_mean": 0.01234, "kl_p99": 0.5, "top1_agreement": 0.987, "tokens": 1000}
    text = summarize_report(
        report(synthetic=True, fidelity=fidelity, calibration={"warnings": ["calibrated on air"]})
    )
    assert "synthetic: the built-in benchmark files are drawings" in text
    assert "fidelity: KL 0.0123 nats mean, 0.500 at the 99th percentile; same top token 98.7 %" in (
        text
    )
    assert "warning: calibrated on air" in text


def test_comparison_has_a_line_per_candidate_and_benchmark() -> None:
    entry = report()
    text = summarize_comparison(
        {
            "candidates": {"int4": entry, "int3": entry},
            "synthetic": True,
            "verdict": "FAIL",
            "margin": 1.5,
        }
    )
    assert sum("MMBench_DEV_EN" in line for line in text.splitlines()) == 2
    assert text.endswith("verdict: FAIL (margin 1.5 points)")
