"""Static int8 layers of the built-in models in integer arithmetic, and planted errors.

    python benchmarks/integer.py [--models tiny tiny-outliers tiny3] [--samples 8]

Quantizes each model to w8a8-static, verifies it (`vlpress verify --integer`), and verifies it again
with an error planted in the table of each layer: a multiplier, a shift, an output scale, a bias.
Errors in the weights and scales of a kernel are planted by
tests/quant/integer/test_integer_check.py. Writes results/integer.json and results/integer.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.machine import describe, provenance
from tabulate import tabulate

import vlpress

HERE = Path(__file__).resolve().parent
RECIPE = "w8a8-static"


def scaled_multiplier(layer: dict[str, Any]) -> None:
    """Lower the multiplier of one channel, by an eighth to a quarter."""
    channel = largest_channel(layer)
    layer["multipliers"][channel] = max(1 << 30, layer["multipliers"][channel] - (1 << 28))


def shifted(layer: dict[str, Any]) -> None:
    """Shift one channel by one bit more."""
    layer["shifts"][largest_channel(layer)] += 1


def scaled_output(layer: dict[str, Any]) -> None:
    """State an output scale that the multipliers were not computed for."""
    layer["output_scale"] *= 1.1


def moved_bias(layer: dict[str, Any]) -> None:
    """Move the bias of one channel by four levels of the output."""
    channel = largest_channel(layer)
    factor = layer["multipliers"][channel] / 2 ** (31 + layer["shifts"][channel])
    layer["bias"][channel] += round(4 / factor)


def largest_channel(layer: dict[str, Any]) -> int:
    """Return the channel with the largest M0."""
    return max(range(len(layer["multipliers"])), key=layer["multipliers"].__getitem__)


ERRORS: dict[str, Callable[[dict[str, Any]], None]] = {
    "multiplier - 2**28": scaled_multiplier,
    "shift + 1": shifted,
    "output scale x 1.1": scaled_output,
    "bias + 4 levels": moved_bias,
}


def measure(name: str, samples: int, work: Path) -> dict[str, Any]:
    """Verify one model, and each layer with each planted error."""
    folder, table = work / name, work / f"{name}.json"
    vlpress.quantize(name, folder, recipe=RECIPE)
    arguments: dict[str, Any] = {"integer": True, "calib_samples": samples}
    result = vlpress.verify(folder, out=table, **arguments)
    planted = {}
    for error, plant in ERRORS.items():
        # One error in every layer: layers are independent, so one pass finds all of them.
        changed = copy.deepcopy(result)
        for layer in changed["layers"]:
            plant(layer)
        table.write_text(json.dumps(changed))
        again = vlpress.verify(folder, table=table, **arguments)
        planted[error] = sum(not layer["agrees"] for layer in again["layers"])
    kernels = [entry for layer in result["layers"] for entry in layer["kernels"].values()]
    return {
        "model": name,
        "layers": len(result["layers"]),
        "agree": sum(layer["agrees"] for layer in result["layers"]),
        "kernels": sorted({name for layer in result["layers"] for name in layer["kernels"]}),
        "largest_difference": max(entry["largest_difference"] for entry in kernels),
        "differing": max(entry["differing"] for entry in kernels),
        "float_error": max(entry["float_error"] for entry in kernels),
        "shifts": [
            min(min(layer["shifts"]) for layer in result["layers"]),
            max(max(layer["shifts"]) for layer in result["layers"]),
        ],
        "planted": planted,
    }


def markdown(results: dict[str, Any]) -> str:
    """Results as Markdown."""
    heads = ["model", "layers", "agree", "largest difference", "differing, at most"]
    heads += ["float32 error", "shifts", *(f"found: {error}" for error in ERRORS)]
    rows = [
        [
            row["model"],
            row["layers"],
            row["agree"],
            row["largest_difference"],
            f"{100 * row['differing']:.1f} %",
            f"{row['float_error']:.1e}",
            "{} to {}".format(*row["shifts"]),
            *(row["planted"][error] for error in ERRORS),
        ]
        for row in results["rows"]
    ]
    return "\n".join(
        [
            "# Static int8 layers in integer arithmetic",
            "",
            describe(results),
            "",
            f"Recipe {RECIPE}, activations of {results['samples']} calibration drawings, kernels "
            f"{' and '.join(results['rows'][0]['kernels'])}. Differences are in levels of the "
            "int8 output; the float32 error is relative to the magnitudes that are added. *Found*: "
            "layers that no longer agree with the error planted in one channel of each.",
            "",
            tabulate(rows, heads, tablefmt="github", disable_numparse=True),
            "",
        ]
    )


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["tiny", "tiny-outliers", "tiny3"])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "integer.json")
    options = parser.parse_args()
    header = provenance()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(name, options.samples, Path(folder)) for name in options.models]
    results = {**header, "samples": options.samples, "rows": rows}
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
