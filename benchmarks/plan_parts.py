"""Tensor bytes by part of the model before and after quantization, for published sizes, by `plan`.

    python benchmarks/plan_parts.py

Nothing is loaded or quantized: only the config files are needed. Fails if Qwen2.5-VL 3B takes more
than its limit with w4a16-all. Writes results/plan_parts.json and results/plan_parts.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common.machine import describe, provenance
from common.qwen3_configs import config_of as qwen3_config
from make_model import config_of
from tabulate import tabulate

from vlpress.model.config import ModelConfig
from vlpress.model.part_names import BYTE_PARTS
from vlpress.quant.plan.plan import make_plan
from vlpress.quant.recipe.recipe import Recipe

OUT = Path(__file__).resolve().parent / "results"
RECIPES = ("w4a16", "vision-w8a16+decoder-w4a16", "w4a16-all")
GB = 1e9
LIMITS = {("Qwen2.5-VL 3b", "w4a16-all"): 2.40 * GB}


def models() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and config.json of each size."""
    for size in ("3b", "7b"):
        yield f"Qwen2.5-VL {size}", config_of("qwen2_5", size)
    yield "Qwen2-VL 2b", config_of("qwen2", "2b")
    for size in ("2b", "8b", "30b-a3b"):
        yield f"Qwen3-VL {size}", qwen3_config(size)


def main() -> None:
    """Plan all sizes and write the result files."""
    rows = []
    for name, raw in models():
        config, before = ModelConfig.from_dict(raw), None
        for recipe in RECIPES:
            plan = make_plan(config, Recipe.resolve(recipe), dtype=torch.bfloat16)
            if before is None:
                before = dict(plan.source_parts)
                rows.append({"model": name, "recipe": "bf16", "parts": before})
            rows.append({"model": name, "recipe": recipe, "parts": plan.candidate_parts})
    results = provenance() | {"rows": rows}
    (OUT / "plan_parts.json").write_text(json.dumps(results, indent=1) + "\n")
    (OUT / "plan_parts.md").write_text(markdown(results))
    print(markdown(results))
    for row in rows:
        total, limit = sum(row["parts"].values()), LIMITS.get((row["model"], row["recipe"]))
        if limit is not None and total > limit:
            sys.exit(f"{row['model']} {row['recipe']}: {total} bytes; allowed: {limit:.0f}")


def markdown(results: dict[str, Any]) -> str:
    """Format the results."""
    body = [
        [
            row["model"],
            row["recipe"],
            *(f"{row['parts'].get(part, 0) / GB:.3f}" for part in BYTE_PARTS),
            f"{sum(row['parts'].values()) / GB:.3f}",
        ]
        for row in results["rows"]
    ]
    head = ["model", "recipe", *BYTE_PARTS, "GB"]
    return (
        "# Bytes by part of published sizes\n\n"
        f"{describe(results)}\n\n"
        "Tensor bytes in GB (1e9), computed from the config files; nothing was quantized. A head "
        "of 0 is tied to the embedding.\n\n"
        + tabulate(body, head, tablefmt="github", disable_numparse=True)
        + "\n"
    )


if __name__ == "__main__":
    main()
