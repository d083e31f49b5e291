from typing import Any

from vlpress.cli.console import comparison_table, headline, inspect_table, scores_table


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


def test_headline_has_scores_interval_flips_and_verdict() -> None:
    lines = headline(report()).splitlines()
    (row,) = [line for line in lines if line.startswith("MMBench_DEV_EN")]
    cells = ["400", "90.0", "88.2", "-1.8", "[-3.5, -0.2]", "0.0391", "10 / 3", "INCONCLUSIVE"]
    places = [row.index(cell) for cell in cells]
    assert places == sorted(places)
    assert "size: 2.0 MiB -> 1.0 MiB (8.00 bits per weight)" in lines
    assert lines[-1] == "verdict: INCONCLUSIVE (margin 2 points)"
    assert not any(line.startswith(("synthetic", "fidelity", "warning")) for line in lines)


def test_headline_says_synthetic_fidelity_and_warning() -> None:
    fidelity = {"kl_mean": 0.01234, "kl_p99": 0.5, "top1_agreement": 0.987, "tokens": 1000}
    text = headline(
        report(synthetic=True, fidelity=fidelity, calibration={"warnings": ["calibrated on air"]})
    )
    assert "synthetic: the built-in benchmark files are drawings" in text
    assert "fidelity: KL 0.0123 nats mean, 0.500 at the 99th percentile; same top token 98.7 %" in (
        text
    )
    assert "warning: calibrated on air" in text


def test_comparison_has_a_line_per_candidate_and_benchmark() -> None:
    entry = report()
    text = comparison_table(
        {
            "candidates": {"int4": entry, "int3": entry},
            "synthetic": True,
            "verdict": "FAIL",
            "margin": 1.5,
        }
    )
    assert sum("MMBench_DEV_EN" in line for line in text.splitlines()) == 2
    assert text.endswith("verdict: FAIL (margin 1.5 points)")


def test_inspection_of_a_foreign_checkpoint_leaves_errors_out() -> None:
    layer = {
        "name": "model.layers.0.mlp.up_proj",
        "scheme": "int4 g128 sym",
        "in_features": 256,
        "out_features": 128,
        "bytes": 2048,
    }
    found = {"checkpoint": "a", "format": "awq", "layers": [layer], "kept": None, "bytes": 4096}
    text = inspect_table(found)
    assert "a: awq, 1 quantized layers, 4.0 KiB" in text
    assert "128 x 256" in text and "2.0 KiB" in text and "kept" not in text
    solved = {**layer, "final_error": 1.5e-4, "rtn_error": 2e-4, "fallback": "no factor"}
    solved |= {"damp_percent": 0.04, "fallback_rows": 128}
    text = inspect_table({**found, "layers": [solved], "kept": {"lm_head": "tied"}})
    assert "1.50e-04" in text and "2.00e-04" in text and "no factor" in text and "0.04" in text
    some = {**solved, "fallback": None, "fallback_rows": 3}
    assert "3 rows rounded" in inspect_table({**found, "layers": [some]})
    assert "1 linear layers are kept" in text


def test_scores_list_categories_and_what_could_not_be_read() -> None:
    entry = {
        "metric": "accuracy",
        "n": 10,
        "score": 70.0,
        "synthetic": True,
        "health": {"parse_failures": 2, "truncated": 1},
        "categories": {"Digit String Recognition": {"n": 10, "score": 70.0}},
    }
    text = scores_table({"benchmarks": {"builtin-ocrbench": entry}, "fidelity": None})
    assert "Digit String Recognition" in text and "70.0" in text and "synthetic" in text
