"""Effect of token weights and of GPTAQ's strength, at 3 bits on the built-in models.

    python benchmarks/ablations.py [--models tiny ...] [--seeds 0 1 2]

One choice of a recipe is varied at a time. The divergence from the baseline is measured as in
accuracy.py: on a validation set, for the choice, and on a held-out set.
The run resumes: variants of the same commit, or one named by --accept, are stored in --work.
Writes results/ablations.json and results/ablations.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import tables
from common.divergence import SEEDS, Divergence, Judges, paired, summarize
from common.machine import provenance
from common.rows.decoders import SETTINGS
from common.rows.steps import DECODER

from vlpress.calib.samples.draw import load_samples
from vlpress.model.processing.processor import Processor
from vlpress.quant.checkpoint.loading import open_model, resolve_folder
from vlpress.quant.driver.pipeline import quantize_
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.resolve import encode_samples

HERE = Path(__file__).resolve().parent
SETTING = "w3a16"


@dataclass(frozen=True)
class Variant:
    """A recipe that differs from the default in one choice."""

    method: str
    changed: str
    """Name of the choice in the table."""
    calibration: dict[str, Any] = field(default_factory=dict)
    step: dict[str, Any] = field(default_factory=dict)

    def recipe(self, seed: int, samples: int) -> Recipe:
        """The recipe for one draw of calibration samples."""
        scheme = SETTINGS[SETTING]
        step = {"method": self.method, "targets": DECODER, **scheme, **self.step}
        calibration = {"samples": samples, "seed": seed, **self.calibration}
        return Recipe.from_dict({"name": SETTING, "calibration": calibration, "step": [step]})


# The first variant of a method is its default; the others are compared with it.
WEIGHTS: dict[str, Any] = {
    "uniform": "uniform",
    "balanced": "balanced",
    "image = 0.1": {"image": 0.1, "text": 1.0},
    "image = 0": {"image": 0.0, "text": 1.0},
    "gradient": "gradient",
    "token-gradient": "token-gradient",
}
STRENGTHS = (0.25, 0.75, 1.0)
"""The default is 0.5, also in the variants of token weights."""
VARIANTS = [
    Variant(method, f"token_weights: {name}", calibration={"token_weights": weights})
    for method in ("gptq", "gptaq")
    for name, weights in WEIGHTS.items()
] + [Variant("gptaq", f"strength: {value}", step={"strength": value}) for value in STRENGTHS]


def main() -> None:
    """Measure, then write the two result files."""
    options = parse()
    torch.set_num_threads(options.threads)
    results = provenance() | {
        "setting": SETTING,
        "samples": options.samples,
        "seeds": options.seeds,
    }
    for kind, size in sizes_of(options).items():
        results[kind] = {"seed": SEEDS[kind], "samples": size}
    results["models"] = {name: measure(name, options, results["commit"]) for name in options.models}
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    (options.out / "ablations.json").write_text(text)
    (options.out / "ablations.md").write_text(tables.ablations(results))
    print(tables.ablations(results))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=["tiny", "tiny-outliers"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of calibration")
    parser.add_argument("--samples", type=int, default=128, help="calibration samples")
    parser.add_argument("--validation", type=int, default=512, help="validation samples")
    parser.add_argument("--held-out", type=int, default=1024, help="held-out samples")
    parser.add_argument("--accept", nargs="+", default=[], metavar="COMMIT", help="see above")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=Path("out/ablations"), help="for resuming")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    return parser.parse_args()


def sizes_of(options: argparse.Namespace) -> dict[str, int]:
    """Number of synthetic samples of each set."""
    return {"validation": options.validation, "held_out": options.held_out}


def measure(name: str, options: argparse.Namespace, commit: str) -> list[dict[str, Any]]:
    """Measure all variants of one model, seed by seed: an interrupted run then has all of them."""
    judges, sizes = Judges(name), sizes_of(options)
    cells: list[list[dict[str, Any]]] = [[] for _ in VARIANTS]
    processor = Processor.from_folder(resolve_folder(name))
    for seed in options.seeds:
        samples = load_samples(None, n=options.samples, seed=seed)
        prompts = encode_samples(samples, processor)
        for number, variant in enumerate(VARIANTS):
            recipe = variant.recipe(seed, options.samples)
            made_from: dict[str, Any] = {"recipe": recipe.to_dict(), "sizes": sizes}
            path = options.work / Path(name).name / f"seed{seed}" / f"{number}.json"
            cell = read(path, made_from, [commit, *options.accept])
            if cell is None:
                model = open_model(name, device="cpu")
                quantize_(model, recipe, prompts)
                cell = judges.measure(model, sizes)
                path.parent.mkdir(parents=True, exist_ok=True)
                made_from["commit"] = commit
                path.write_text(json.dumps({**cell, "made_from": made_from}))
                print(name, variant.method, variant.changed, seed, file=sys.stderr, flush=True)
            cells[number].append(cell)
    defaults: dict[str, list[Divergence]] = {}
    rows = []
    for variant, of_seeds in zip(VARIANTS, cells, strict=True):
        runs = {kind: [Divergence(**cell[kind]) for cell in of_seeds] for kind in sizes}
        reference = defaults.setdefault(variant.method, runs["held_out"])
        difference = paired(runs["held_out"], reference)
        row = {"method": variant.method, "changed": variant.changed}
        rows.append(
            row
            | {kind: summarize(runs[kind]) for kind in sizes}
            | {"from_default": [difference.low, difference.high]}
        )
    return rows


def read(path: Path, made_from: dict[str, Any], commits: list[str]) -> dict[str, Any] | None:
    """Load the measurement of an earlier run of one of these commits, None if there is none."""
    if not path.is_file():
        return None
    cell: dict[str, Any] = json.loads(path.read_text())
    origin = cell.pop("made_from")
    return cell if origin.pop("commit") in commits and origin == made_from else None


if __name__ == "__main__":
    main()
