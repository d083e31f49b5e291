"""Visual-token budgets of the built-in model: the table and the plots of docs/pixels.md.

    python benchmarks/pixels.py [--limit N] [--work DIR]

Runs `vlpress pixels` on `tiny` with the budgets that bind on its drawings: these have 16 or 9
visual tokens, and scaled to whole tokens 9 or 4. `--work` keeps the answers, so that an interrupted
run or one with more questions resumes. Writes results/pixels.json, the tables between the marks of
docs/pixels.md, and docs/pixels-score.svg and docs/pixels-divergence.svg. Times are left out of the
document if other processes competed for the cores.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.machine import ROOT, describe, provenance

from vlpress.bench.machine_load import describe_load, is_busy
from vlpress.eval.config import BUILTIN_BENCHES
from vlpress.eval.pixels.run import pixels
from vlpress.eval.report.html.budget_page import budget_figures
from vlpress.eval.report.html.render import TEMPLATES
from vlpress.eval.report.tables.budgets import (
    budget_choice_table,
    budget_cost_table,
    budget_score_table,
)
from vlpress.eval.report.tables.columns import markdown_table

BUDGETS = (9, 4)
STORED = ROOT / "benchmarks" / "results" / "pixels.json"
DOCUMENT = ROOT / "docs" / "pixels.md"
PLOTS = ("pixels-score.svg", "pixels-divergence.svg")
MARKS = "<!-- begin: benchmarks/pixels.py -->", "<!-- end: benchmarks/pixels.py -->"
TIMES = ("image, ms", "prefill, ms", "first token, ms", "of own", "spread")


def main() -> None:
    """Measure, and write the result file and the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--limit", type=int, help="questions of each benchmark; default all")
    parser.add_argument("--work", type=Path, help="folder for the answers; default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = pixels(
            "tiny",
            options.work or Path(temporary) / "tiny",
            bench=BUILTIN_BENCHES,
            budgets=BUDGETS,
            limit=options.limit,
            device="cpu",
            progress=True,
        )
    # The path of the folder is of this machine alone.
    stored = {key: value for key, value in result.items() if key not in ("command", "written")}
    results = {**provenance(), "limit": options.limit, "result": stored}
    STORED.write_text(json.dumps(results, indent=1) + "\n")
    for name, figure in zip(PLOTS, budget_figures(result), strict=True):
        (ROOT / "docs" / name).write_text(standalone(str(figure.svg)))
    before, _, rest = DOCUMENT.read_text("utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    text = f"{before}{MARKS[0]}\n\n{section(results)}\n\n{MARKS[1]}{after}"
    DOCUMENT.write_text(text, "utf-8")
    print(section(results))


def section(results: Mapping[str, Any]) -> str:
    """The tables of the document, with the machine and the questions."""
    result, limit = results["result"], results["limit"]
    load = result["timing"]["load"]
    questions = "All questions" if limit is None else f"At most {limit} questions of each benchmark"
    costs = budget_cost_table(result)
    times = f"Times: {describe_load(load)}."
    if is_busy(load):
        columns = [column for column in costs.columns if column.head not in TIMES]
        costs = replace(costs, columns=columns)
        times = "Times were measured while other processes used the cores, and are left out."
    parts = [
        f"{describe(dict(results))} {questions}, margin {result['margin']:g} points.",
        markdown_table(budget_score_table(result)),
        markdown_table(costs),
        markdown_table(budget_choice_table(result)),
        times,
    ]
    return "\n\n".join(parts)


def standalone(svg: str) -> str:
    """Turn a figure of a page into a file: the page's light colours and a font of its own."""
    style = (TEMPLATES / "page.css").read_text("utf-8").partition("}")[0]
    colors = dict(re.findall(r"(--[\w-]+): (#\w+);", style))
    drawn = re.sub(r"var\((--[\w-]+)\)", lambda match: colors[match[1]], svg)
    own = f'style="background: {colors["--paper"]}; font-family: sans-serif" '
    return drawn.replace("<svg ", f"<svg {own}", 1) + "\n"


if __name__ == "__main__":
    main()
