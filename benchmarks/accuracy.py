"""Accuracy loss of every method, on the built-in models.

    python benchmarks/accuracy.py [--models tiny ...] [--settings w4a16 ...] [--seeds 0 1 2]

Each row is quantized once per calibration seed. Its divergence from the baseline is measured on a
validation set, for the choice of the best method of a setting (after a run-off if several are
close, see `common/choice.py`), and on a held-out set, which the table shows. For the rows that most
users will choose from, the benchmarks are evaluated with the checkpoint of the first seed: of
tables of levels, rounding and the solver that is better on the validation set. Grids that no
checkpoint format holds are evaluated as float checkpoints of the dequantized weights. Rows of the
method `float` keep the weights and round the activations alone (`common/float_weights.py`). Every
run compares GPTQ's error on every layer with that of rounding to nearest, and fails if it is
larger.

The run resumes: rows of the same commit are stored in --work, so that several processes can share
the rows of one table (--models) and a final run collects them. --accept reuses rows of other
commits, for a change that does not affect them: remove the affected ones from --work first. As
evidence, --check measures the given rows again and fails if a number differs.
Rows of shrunk and rotated models are prepared as checkpoints first (`common/preparing.py`). Some
rows have the paired interval of their divergence minus that of another row: rotated ones of the
same without rotation, adapters of groups of nearest size, recovered ones of their start, and shrunk
ones of the integers of nearest size.
With --packed every checkpoint is packed as well, and the table has the bytes of its quantized
layers as stored and in the container.
--table methods measures every method of compression beside plain integers, on the same samples and
all with scores (`common/rows/selections.py`); its bytes are those of the whole decoder. A row is
compared with its start or with the same row without a rotation, otherwise with the integers of
nearest size.
Writes results/NAME.json and results/NAME.md, NAME being `accuracy` unless --name says otherwise.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
from common import methods_table, tables
from common.choice import FINAL, RUNOFF, contenders, winner
from common.dequantized_checkpoint import save_dequantized
from common.divergence import SEEDS, Divergence, Judges, paired, summarize
from common.float_weights import restore_weights_
from common.machine import provenance
from common.packed import DECODER, packed_bytes
from common.preparing import prepare
from common.recovery import recover_from_base
from common.rows.decoders import SETTINGS
from common.rows.families import all_rows, settings
from common.rows.grids import FLOAT
from common.rows.row import SAMPLE_FACTORS, Row
from common.rows.selections import TABLES, nearest_plain, rows_of
from common.tables import listed

import vlpress
from vlpress.calib.samples.draw import load_samples
from vlpress.eval import compare
from vlpress.model.config import ModelConfig
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.formats.format import refusal
from vlpress.quant.checkpoint.formats.table import FORMATS, PREFERRED
from vlpress.quant.checkpoint.loading import open_model, resolve_folder
from vlpress.quant.driver.pipeline import quantize_, save_quantized
from vlpress.quant.driver.report import QuantReport
from vlpress.quant.plan.part_targets import spell_out_parts
from vlpress.quant.plan.plan import make_plan
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.resolve import encode_samples

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Measure, then write the two result files."""
    options = parse()
    torch.set_num_threads(options.threads)
    results = provenance() | {
        "samples": options.samples,
        "seeds": options.seeds,
        "held_out": {"seed": SEEDS["held_out"], "samples": options.held_out},
    }
    if options.table is not None:
        results["table"] = options.table
    else:
        results |= {
            "validation": {"seed": SEEDS["validation"], "samples": options.validation},
            "runoff": {"seed": SEEDS["runoff"], "times_validation": RUNOFF},
            "final": {"seed": SEEDS["final"], "times_held_out": FINAL},
        }
    rows = chosen_rows(options)
    results["models"] = {
        name: Measurement(name, options, results["commit"]).table(rows) for name in options.models
    }
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    (options.out / f"{options.name}.json").write_text(text)
    page = tables.accuracy(results) if options.table is None else methods_table.page(results)
    (options.out / f"{options.name}.md").write_text(page)
    print(page)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=["tiny", "tiny-outliers"])
    parser.add_argument("--table", choices=TABLES, help="rows of several families, see above")
    parser.add_argument("--settings", nargs="+", choices=settings(), help="default the main table")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="as awq+gptq (default all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of calibration")
    parser.add_argument("--samples", type=int, default=128, help="calibration samples")
    parser.add_argument("--validation", type=int, default=256, help="validation samples")
    parser.add_argument("--held-out", type=int, default=512, help="held-out samples")
    parser.add_argument("--no-choice", action="store_true", help="choose no best method")
    parser.add_argument("--limit", type=int, help="questions per benchmark (default all, 0 none)")
    parser.add_argument("--packed", action="store_true", help="count the bytes in a container too")
    parser.add_argument("--accept", nargs="+", default=[], metavar="COMMIT", help="see above")
    parser.add_argument("--check", nargs="+", default=[], metavar="ROW", help="as w4a16/gptq")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=Path("out/accuracy"), help="kept for resuming")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--name", default="accuracy", help="of the result files")
    options = parser.parse_args()
    if options.table is not None:
        if options.settings or options.methods:
            parser.error("--table has its own rows; leave out --settings and --methods")
        options.no_choice = options.packed = True
    return options


def chosen_rows(options: argparse.Namespace) -> list[Row]:
    """Rows that the command line asks for."""
    if options.table is not None:
        return rows_of(TABLES[options.table])
    rows = [row for row in all_rows() if row.setting in (options.settings or SETTINGS)]
    return [row for row in rows if row.method in (options.methods or [row.method])]


class Measurement:
    """Measures all rows of one model."""

    def __init__(self, name: str, options: argparse.Namespace, commit: str) -> None:
        self.name, self.options, self.commit = name, options, commit
        self.work = options.work / Path(name).name
        self.processor = Processor.from_folder(resolve_folder(name))
        self.judges = Judges(name)
        self.config = ModelConfig.from_folder(resolve_folder(name))
        self.rows: Sequence[Row] = ()
        self.scored: list[Row] = []

    def table(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Measure every row; return them, the best of each setting and the baseline's scores."""
        self.rows = rows
        if self.options.limit != 0:
            self.scored = [row for row in rows if row.scored or self.options.table is not None]
        for row in rows:
            if row.key in self.options.check:
                self.check(row)
        # Seed by seed, so that an interrupted run has measured every method.
        for seed in self.options.seeds:
            for row in rows:
                if seed in self.seeds(row):
                    self.cell(row, seed)
        if self.scored:
            self.scored += self.better_solvers()
        base = self.ask(self.name, self.work / "base") if self.scored else {}
        for row in self.scored:
            self.scores(row)
        if self.options.no_choice:
            of_rows = [self.row(row) for row in rows]
            return {"base": base, **self.base_bytes(), "rows": of_rows, "best": []}
        raced = {row: self.more(row, "runoff") for row in self.close(rows)}
        results = {row: self.row(row) | raced.get(row, {}) for row in rows}
        for row in rows:
            if row.judged_closely and results[row] is winner(alike(row, results)):
                results[row] |= self.more(row, "final")
        return {
            "base": base,
            **self.base_bytes(),
            "rows": list(results.values()),
            "best": choose(list(results.values())),
        }

    def seeds(self, row: Row) -> list[int]:
        """Calibration seeds of a row; only one for methods without calibration."""
        looks = self.recipe(row, 0).needs_samples or row.draws
        return row.seeds(self.options.seeds if looks else self.options.seeds[:1])

    def row(self, row: Row) -> dict[str, Any]:
        """Measure one row over all calibration seeds."""
        seeds = self.seeds(row)
        cells = [self.cell(row, seed) for seed in seeds]
        return {
            "setting": row.setting,
            "method": row.method,
            "scope": row.scope,
            "commits": sorted({cell["commit"] for cell in cells}),
            "seeds": seeds,
            "bits_per_weight": cells[0]["bits_per_weight"],
            "parts": cells[0].get("parts"),
            **({"bytes": cells[0]["bytes"]} if "bytes" in cells[0] else {}),
            **({"decoder": self.decoder(row)} if self.options.table is not None else {}),
            **({"layer_error": cells[0]["layer_error"]} if "layer_error" in cells[0] else {}),
            "fallback_rows": sum(cell["fallback_rows"] for cell in cells),
            "solved_rows": sum(cell["solved_rows"] for cell in cells),
            **{name: summarize(self.runs(row, name)) for name in self.sizes(row)},
            **self.beside(row),
            "benchmarks": self.scores(row) if row in self.scored else {},
        }

    def beside(self, row: Row) -> dict[str, Any]:
        """Compare a row with the one beside it, on the held-out samples."""
        other = self.other(row)
        if other is None or other.setting not in {each.setting for each in self.rows}:
            return {}
        interval = paired(*(self.runs(each, "held_out") for each in (row, other)))
        return {"beside": {"row": other.key, "ci95": [interval.low, interval.high]}}

    def other(self, row: Row) -> Row | None:
        """The row beside another, which is a plain one for most rows of a table of all methods."""
        if self.options.table is None and not row.is_beside_plain:
            return row.beside
        if row.is_beside_start and row.beside is not None:
            return row.beside
        if row.is_plain:
            return None
        packs = self.options.table is not None and row.saves_in_container
        return nearest_plain(row, self.rows, self.packed_size if packs else self.size)

    def size(self, row: Row) -> int:
        """Bytes of all tensors of a row's checkpoint."""
        return sum(self.cell(row, self.seeds(row)[0])["parts"].values())

    def decoder(self, row: Row) -> dict[str, int | None]:
        """Bytes of a row's decoder, as stored by its plan and in a container."""
        parts = self.cell(row, self.seeds(row)[0])["parts"]
        return {"stored": sum(parts[part] for part in DECODER), "packed": self.packed_size(row)}

    def packed_size(self, row: Row) -> int | None:
        """Bytes of a row's decoder in a container; None if no format holds its grid."""
        size: int | None = self.cell(row, self.seeds(row)[0]).get("bytes", {}).get("decoder_packed")
        return size

    def better_solvers(self) -> list[Row]:
        """Of rows that are scored if they are the best ones in validation, that of each setting."""
        rows = [row for row in self.rows if row.scored_if_best and row not in self.scored]
        means = {row: summarize(self.runs(row, "validation"))["kl_mean"] for row in rows}
        groups: dict[str, list[Row]] = {}
        for row in rows:
            groups.setdefault(row.setting, []).append(row)
        return [min(group, key=lambda row: means[row]) for group in groups.values()]

    def runs(self, row: Row, name: str) -> list[Divergence]:
        """Divergences of a row on one set of samples, by calibration seed."""
        return [Divergence(**self.cell(row, seed)[name]) for seed in self.seeds(row)]

    def close(self, rows: Sequence[Row]) -> list[Row]:
        """Rows that the validation set cannot distinguish from the best of their setting."""
        rows_to_race = []
        for setting in SAMPLE_FACTORS:
            group = [row for row in rows if row.setting == setting and row.judged_closely]
            if group:
                names = contenders({row.method: self.runs(row, "validation") for row in group})
                rows_to_race += [row for row in group if row.method in names and len(names) > 1]
        return rows_to_race

    def more(self, row: Row, name: str) -> dict[str, Any]:
        """Measure a row on the samples of the run-off, or on the final set."""
        sizes = self.sizes(row)
        sizes_by_name = {"runoff": RUNOFF * sizes["validation"], "final": FINAL * sizes["held_out"]}
        cells = []
        for seed in self.seeds(row):
            size = {name: sizes_by_name[name]}
            path = self.folder(row, seed) / f"{name}.json"
            made_from = self.made_from(row, seed, size)
            if (cell := self.stored(path, made_from)) is None:
                cell = self.judges.measure(self.quantize(row, seed)[0], size)
                cell = self.store(cell, path, made_from)
            cells.append(cell)
        return {name: summarize([Divergence(**cell[name]) for cell in cells])}

    def cell(self, row: Row, seed: int) -> dict[str, Any]:
        """Measure one row and seed, or load its stored measurement."""
        path = self.folder(row, seed) / "cell.json"
        made_from = self.made_from(row, seed, self.sizes(row), packed=self.options.packed)
        if (cell := self.stored(path, made_from)) is not None:
            return cell
        return self.store(self.measure(row, seed), path, made_from)

    def scores(self, row: Row) -> dict[str, Any]:
        """Evaluate the benchmarks with the checkpoint of the first seed, or load the scores."""
        seed = self.options.seeds[0]
        folder = self.folder(row, seed)
        made_from = self.made_from(row, seed, {}) | {"limit": self.options.limit}
        if (scored := self.stored(folder / "scores.json", made_from)) is None:
            checkpoint = self.checkpoint(row, seed)
            self.ask(str(checkpoint), folder / "eval", fresh=True)
            judged = compare(self.work / "base", folder / "eval", folder / "report")
            benchmarks = {
                name: {key: of_task[key] for key in ("candidate", "delta", "ci95", "verdict")}
                for name, of_task in judged["benchmarks"].items()
            }
            scored = self.store({"benchmarks": benchmarks}, folder / "scores.json", made_from)
        of_row: dict[str, Any] = scored["benchmarks"]
        return of_row

    def checkpoint(self, row: Row, seed: int) -> Path:
        """Folder of a row's checkpoint, which is written unless it was measured with it."""
        folder = self.folder(row, seed) / "checkpoint"
        made_from = self.made_from(row, seed, {})
        if not folder.is_dir() or self.stored(folder.with_suffix(".json"), made_from) is None:
            self.save(row, seed, *self.quantize(row, seed))
        return folder

    def save(self, row: Row, seed: int, model: QwenVL, report: QuantReport) -> Path:
        """Write a row's checkpoint, in float if no format holds the grid; return its folder."""
        folder, source = self.folder(row, seed) / "checkpoint", self.source(row, seed)
        record = folder.with_suffix(".json")
        record.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        if report.recipe.is_float:
            shutil.copytree(source, folder)
        elif is_held(report):
            save_quantized(model, report, source, folder, overwrite=True)
        else:
            save_dequantized(model, source, folder)
        self.store({}, record, self.made_from(row, seed, {}))
        return folder

    def source(self, row: Row, seed: int) -> Path:
        """Folder of the float checkpoint that is quantized, once `quantize` has prepared it."""
        if self.recipe(row, seed).preparations:
            return self.folder(row, seed) / "prepared"
        source: Path = resolve_folder(self.name)
        return source

    def folder(self, row: Row, seed: int) -> Path:
        """Folder of a stored cell."""
        folder: Path = self.work / row.key / f"seed{seed}"
        return folder

    def made_from(
        self, row: Row, seed: int, sizes: dict[str, int], *, packed: bool = False
    ) -> dict[str, Any]:
        """Inputs that determine the numbers of a cell, and whether it has packed bytes."""
        recipe = self.recipe(row, seed).to_dict()
        later = [training.to_dict() for training in row.later_trainings]
        return {
            "recipe": recipe,
            **({"later": later} if later else {}),
            "sizes": list(sizes.values()),
            **({"packed": 1} if packed else {}),
        }

    def recipe(self, row: Row, seed: int) -> Recipe:
        """Recipe of a row, with the names of this model's layers."""
        return spell_out_parts(row.recipe(seed, self.options.samples), self.config)

    def stored(self, path: Path, made_from: dict[str, Any]) -> dict[str, Any] | None:
        """Load a stored cell if its inputs match and its commit is accepted."""
        if not path.is_file():
            return None
        cell: dict[str, Any] = json.loads(path.read_text())
        origin = cell.pop("made_from")
        commit = origin.pop("commit")
        if origin != made_from or commit not in (self.commit, *self.options.accept):
            return None
        return {**cell, "commit": commit}

    def store(self, cell: dict[str, Any], path: Path, made_from: dict[str, Any]) -> dict[str, Any]:
        """Store a cell for `stored`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        made_from = {**made_from, "commit": self.commit}
        path.write_text(json.dumps({**cell, "made_from": made_from}))
        print(self.name, path.relative_to(self.work), file=sys.stderr, flush=True)
        return {**cell, "commit": self.commit}

    def quantize(self, row: Row, seed: int) -> tuple[QwenVL, QuantReport]:
        """Quantize the model of a row and check GPTQ against rounding."""
        recipe, samples, prompts = self.recipe(row, seed), [], []
        if recipe.needs_samples:
            samples = load_samples(None, n=self.options.samples, seed=seed)
            prompts = encode_samples(samples, self.processor)
        source, records = self.source(row, seed), tuple[Mapping[str, Any], ...]()
        if recipe.preparations:
            records = prepare(recipe, resolve_folder(self.name), source, samples)
        model = open_model(source, device="cpu")
        if recipe.is_float:
            plan = make_plan(self.config, recipe)
            return model, QuantReport(recipe, plan, (), None, prepared=records)
        trainings, recover = row.later_trainings, recipe.recover
        if recover is not None and not recover.is_blockwise:
            trainings, recover = [recover, *trainings], None
        recipe = replace(recipe, preparations=(), recover=recover)
        report = quantize_(model, recipe, prompts)
        check_against_rounding(report, f"{self.name} {row.key} seed {seed}")
        for training in trainings:
            record = recover_from_base(model.float(), self.name, training, self.work / "teacher")
            print(self.name, row.key, json.dumps(record), file=sys.stderr, flush=True)
        if row.method == FLOAT:
            restore_weights_(model, open_model(self.name, device="cpu"))
        return model, report

    def measure(self, row: Row, seed: int) -> dict[str, Any]:
        """Measure a cell, without benchmark scores, and write the checkpoint that these need."""
        model, report = self.quantize(row, seed)
        solved = (
            layer.row.spec.out_features
            for layer in report.layers
            if layer.row.step and layer.row.step.falls_back
        )
        return {
            "bits_per_weight": report.bits_per_weight,
            "parts": report.plan.candidate_parts,
            "fallback_rows": report.fallback_rows,
            "solved_rows": sum(solved),
            **self.written(row, seed, model, report),
            **({"layer_error": layer_error(report)} if row.has_layer_errors else {}),
            **self.judges.measure(model, self.sizes(row)),
        }

    def written(self, row: Row, seed: int, model: QwenVL, report: QuantReport) -> dict[str, Any]:
        """Write the checkpoint if it is scored or packed; return its bytes in the latter case."""
        is_scored = row in self.scored and seed == self.options.seeds[0]
        is_packed = self.options.packed and (report.recipe.is_float or is_held(report))
        if not is_scored and not is_packed:
            return {}
        folder = self.save(row, seed, model, report)
        if not is_packed:
            return {}
        size, parts = packed_bytes(folder, report.layers), report.plan.candidate_parts
        planned = sum(parts[part] for part in DECODER)
        if size["decoder_stored"] != planned:
            sys.exit(f"{self.name} {row.key}: {size['decoder_stored']} bytes, planned {planned}")
        if not is_scored:
            shutil.rmtree(folder)
        return {"bytes": size}

    def base_bytes(self) -> dict[str, Any]:
        """Bytes of the original, if those of rows are counted."""
        if not self.options.packed:
            return {}
        return {"base_bytes": packed_bytes(Path(resolve_folder(self.name)))}

    def sizes(self, row: Row) -> dict[str, int]:
        """Number of samples of each set for a row."""
        options = self.options
        if options.table is not None:  # nothing is chosen, and any two rows may be compared
            return {"held_out": options.held_out}
        return row.sample_counts(options.validation, options.held_out)

    def check(self, row: Row) -> None:
        """Measure a stored row again and fail if a number differs."""
        seed = self.seeds(row)[-1]
        stored = json.loads((self.folder(row, seed) / "cell.json").read_text())
        measured = json.loads(json.dumps(self.measure(row, seed)))
        if changed := [key for key, value in measured.items() if stored.get(key) != value]:
            sys.exit(f"{self.name} {row.key} seed {seed}: {listed(changed)} moved")
        print(self.name, row.key, seed, "as stored", file=sys.stderr, flush=True)

    def ask(self, model: str, out: Path, *, fresh: bool = False) -> dict[str, Any]:
        """Evaluate the benchmarks into a folder; resumes an existing run unless `fresh`."""
        scores = vlpress.evaluate(
            model,
            out,
            limit=self.options.limit,
            device="cpu",
            overwrite=True,
            fresh=fresh,
            progress=True,
        )
        return {
            name: {"score": row["score"], "n": row["n"]}
            for name, row in scores["benchmarks"].items()
        }


def is_held(report: QuantReport) -> bool:
    """Whether a checkpoint format holds the result."""
    contents = report.plan.contents
    return any(refusal(FORMATS[name], contents) is None for name in PREFERRED)


def layer_error(report: QuantReport) -> float:
    """Geometric mean of the layers' relative output errors, with their adapters."""
    errors = (
        layer.final_error if layer.adapter_error is None else layer.adapter_error
        for layer in report.layers
    )
    return geometric_mean(error for error in errors if error is not None)


def check_against_rounding(report: QuantReport, where: str) -> None:
    """Fail if GPTQ, before any fallback, has a larger error on a layer than rounding to nearest."""
    for layer in report.layers:
        error, rtn_error = layer.error, layer.rtn_error
        if error is not None and rtn_error is not None and error > rtn_error:
            sys.exit(
                f"{where}: {layer.row.name} has error {error:.4e} with GPTQ, {rtn_error:.4e} with "
                "RTN on the same grid"
            )


def alike(row: Row, results: Mapping[Row, dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of all rows with the setting and scope of a row."""
    group = row.setting, row.scope
    return [value for other, value in results.items() if (other.setting, other.scope) == group]


def choose(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chosen method of each scope and setting, with its results."""
    best = []
    rows = [row for row in rows if row["method"] != FLOAT]
    for _, group in groupby(rows, key=lambda row: (row["scope"], row["setting"])):
        members = list(group)
        raced = [row["method"] for row in members if "runoff" in row]
        if row := winner(members):
            entry = {key: row[key] for key in ("scope", "setting", "method", "held_out")}
            best.append(entry | {"runoff": raced})
    return best


if __name__ == "__main__":
    main()
