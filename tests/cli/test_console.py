from __future__ import annotations

import subprocess
import sys
from typing import Any

from vlpress.cli.byte_bars import byte_lines
from vlpress.cli.console import (
    drafts_line,
    inspect_table,
    joined_experts,
    kernels_table,
    scores_table,
    verify_table,
)


def test_import_needs_neither_torch_nor_matplotlib() -> None:
    slow = "{'torch', 'matplotlib', 'scipy'}"
    code = f"import sys, vlpress.cli.console; print({slow} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_inspection_of_a_foreign_checkpoint_omits_errors() -> None:
    layer = {
        "name": "model.layers.0.mlp.up_proj",
        "scheme": "int4 g128 sym",
        "in_features": 256,
        "out_features": 128,
        "bytes": 2048,
    }
    checkpoint = {
        "checkpoint": "a",
        "format": "awq",
        "layers": [layer],
        "kept": None,
        "bytes": 4096,
        "parts": {"decoder": 3072, "tower": 0, "embedding": 1024, "head": 0, "rest": 0},
        "base_parts": None,
    }
    text = inspect_table(checkpoint)
    assert "a: awq, 1 quantized layers, 4.0 KiB" in text
    assert "128 x 256" in text and "2.0 KiB" in text and "kept" not in text
    solved = {**layer, "final_error": 1.5e-4, "rtn_error": 2e-4, "fallback": "no factor"}
    solved |= {"damp_percent": 0.04, "fallback_rows": 128}
    text = inspect_table({**checkpoint, "layers": [solved], "kept": {"lm_head": "tied"}})
    assert "1.50e-04" in text and "2.00e-04" in text and "no factor" in text and "0.04" in text
    some = {**solved, "fallback": None, "fallback_rows": 3}
    assert "3 rows rounded" in inspect_table({**checkpoint, "layers": [some]})
    assert "1 linear layers are kept" in text


def test_bars_of_bytes_are_to_scale() -> None:
    """The longest bar is 60 characters; rounding a segment does not shift the ones after it."""
    before = {"decoder": 500, "tower": 250, "embedding": 245, "head": 0, "rest": 5}
    after = {"decoder": 125, "tower": 125, "embedding": 65, "head": 125, "rest": 5}
    numbers, original, candidate = byte_lines(before, after)
    assert "D decoder 500 B -> 125 B" in numbers and "H head 0 B -> 125 B" in numbers
    assert original.split() == ["original", "D" * 30 + "T" * 15 + "E" * 15, "1000", "B"]
    bar = "D" * 8 + "T" * 7 + "E" * 4 + "H" * 7 + "." * 1
    assert candidate.split() == ["candidate", bar, "445", "B"]
    numbers, alone = byte_lines(None, after)
    assert "->" not in numbers and alone.count("T") == round(60 * 250 / 445) - round(60 * 125 / 445)


def test_scores_list_categories_and_unreadable_answers() -> None:
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


def test_kernels_are_relative_to_torch() -> None:
    row = {"in_features": 64, "out_features": 128, "bandwidth": 2e9, "bandwidth_share": 0.5}
    rows = [
        {**row, "rows": 1, "kind": "torch bf16", "seconds": 0.004},
        {**row, "rows": 1, "kind": "int4", "seconds": 0.001},
    ]
    lines = kernels_table({"rows": rows, "threads": 2}).splitlines()
    assert lines[2].split() == ["64", "x", "128", "1", "torch", "bf16", "4.000", "1.00", "50", "%"]
    assert lines[3].split() == ["64", "x", "128", "1", "int4", "1.000", "4.00", "50", "%"]
    assert "2.0 to 2.0 GB/s" in lines[-1]


def test_experts_share_a_row_of_the_plan() -> None:
    def row(name: str, expert: int | None, fate: str = "gptq int4") -> dict[str, Any]:
        return {"name": name, "expert": expert, "fate": fate, "bytes_before": 8, "bytes_after": 3}

    block = "model.layers.1.mlp.experts"
    rows = [row("model.layers.1.self_attn.q_proj", None)]
    rows += [row(f"{block}.{e}.{n}_proj", e) for e in range(3) for n in ("up", "down")]
    rows += [row(f"{block}.3.up_proj", 3, "rtn int8"), row("lm_head", None, "kept")]
    joined = joined_experts(rows)
    assert [
        (row["name"], row["fate"], row["bytes_before"], row["bytes_after"]) for row in joined
    ] == [
        ("model.layers.1.self_attn.q_proj", "gptq int4", 8, 3),
        (f"{block}.*.up_proj (experts: 3)", "gptq int4", 24, 9),
        (f"{block}.*.down_proj (experts: 3)", "gptq int4", 24, 9),
        (f"{block}.*.up_proj (experts: 1)", "rtn int8", 8, 3),
        ("lm_head", "kept", 8, 3),
    ]


def test_drafts_of_an_answer() -> None:
    draft = {"name": "ngram", "passes": 5, "drafted": 8, "accepted": 2, "accepted_share": 0.25}
    assert drafts_line({**draft, "tokens_per_pass": 1.4}) == (
        "draft ngram: 2 of 8 drafts accepted (25.0%), 1.40 tokens per pass of the model"
    )
    nothing = {**draft, "drafted": 0, "accepted": 0, "accepted_share": None}
    assert drafts_line(nothing) == "draft ngram: nothing was drafted in 5 passes"


def test_layers_in_integer_arithmetic() -> None:
    entry = {"largest_difference": 1, "differing": 0.02, "float_error": 1e-7, "agrees": True}
    layer = {
        "name": "model.layers.0.mlp.up_proj",
        "in_features": 256,
        "out_features": 128,
        "rows": 65,
        "shifts": [7, 11],
        "problem": None,
        "agrees": True,
        "kernels": {"reference": entry, "avx2": {**entry, "largest_difference": 0}},
    }
    other = {**layer, "name": "b", "agrees": False, "kernels": {}, "problem": "overflow"}
    result = {
        "checkpoint": "out",
        "layers": [layer, {**layer, "name": "a", "agrees": False}, other],
        "skipped": ["visual.x"],
        "others": {"lm_head": "float", "y": "float"},
    }
    text = verify_table(result)
    assert "1 of 3 layers with static int8 activations agree" in text
    assert "the kernels avx2, reference" in text
    assert "7 to 11" in text and "DIFFERS" in text and "overflow" in text
    assert "1 such layers are reached by no sample: visual.x" in text
    assert "not verified, other linear layers: float (2)" in text
