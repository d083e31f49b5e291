"""Time and memory of a whole quantization: vlpress and llm-compressor on the same model.

    python benchmarks/whole_pass.py [--layers 4] [--samples 32] [--work out/whole-pass]

Writes a checkpoint of random weights with the widths of Qwen2.5-VL-3B (two vision layers, because
neither library quantizes the tower here) and samples of about 400 tokens. Each library then
quantizes to int4 in groups of 128 with GPTQ, in a separate process with all threads. Time and peak
memory are those of the processes, including loading and writing. vlpress then loads both
checkpoints and computes the error of their logits on held-out samples. Writes
results/whole_pass.json and results/whole_pass.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common.machine import ROOT, describe, provenance
from common.processes import run_measured
from peers import samples
from peers.run import inputs_of, python_of
from peers.settings import LLM_COMPRESSOR, RECORD, Job, write_jobs
from tabulate import tabulate

from vlpress.calib.samples.draw import load_samples
from vlpress.model.loading import load_model
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.loading import load_quantized
from vlpress.quant.resolve import encode_samples

HERE = Path(__file__).resolve().parent
AREA = (274400, 282240)
"""Smallest and largest number of pixels of an image: about 360 tokens."""
HELD_OUT = 8
GIB = 2**30


def main() -> None:
    """Measure both and write the result files."""
    options = parse()
    if not python_of(LLM_COMPRESSOR).is_file():
        sys.exit(f"{python_of(LLM_COMPRESSOR)} is missing; `make peers` builds it")
    source = options.work / f"3b-{options.layers}"
    if not source.is_dir():
        # In a separate process, so that this one stays small.
        command = [sys.executable, str(HERE / "make_model.py"), str(source), "--size", "3b"]
        small = ["--layers", str(options.layers), "--vision-layers", "2"]
        subprocess.run([*command, *small], check=True)
    processor = Processor.from_folder(source, min_pixels=AREA[0], max_pixels=AREA[1])
    drawn = encode_samples(load_samples(None, n=options.samples, seed=0), processor)
    # The measurements take minutes: stored before the errors are computed, which can fail.
    partial = options.work / "measured.json"
    rows: dict[str, Any] = json.loads(partial.read_text()) if partial.is_file() else {}
    if not rows:
        rows["vlpress"] = run_vlpress(source, options)
        rows[LLM_COMPRESSOR] = run_llm_compressor(source, drawn, processor, options)
        partial.write_text(json.dumps(rows))
    held_out = encode_samples(load_samples(None, n=HELD_OUT, seed=1), processor)
    folders = [options.work / name for name in rows]
    for row, error in zip(rows.values(), errors(source, folders, held_out), strict=True):
        row["logit_error"] = error
    results = provenance() | {
        "layers": options.layers,
        "samples": options.samples,
        "tokens": sum(len(prompt) for prompt in drawn),
        "rows": rows,
    }
    stored = HERE / "results" / "whole_pass.json"
    stored.write_text(json.dumps(results, indent=1) + "\n")
    stored.with_suffix(".md").write_text(markdown(results))
    partial.unlink()
    print(markdown(results))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=4, help="of the decoder")
    parser.add_argument("--samples", type=int, default=32, help="calibration samples")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "whole-pass")
    options = parser.parse_args()
    options.work = options.work.resolve()
    return options


def run_vlpress(source: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Quantize with the command line of vlpress."""
    out = options.work / "vlpress"
    shutil.rmtree(out, ignore_errors=True)
    values = {
        "out": out,
        "recipe": "w4a16",
        "calib-samples": options.samples,
        "min-pixels": AREA[0],
        "max-pixels": AREA[1],
    }
    flags = [text for name, value in values.items() for text in (f"--{name}", str(value))]
    return timed([sys.executable, "-m", "vlpress", "quantize", str(source), "--json", *flags])


def run_llm_compressor(
    source: Path, drawn: Sequence[Prompt], processor: Processor, options: argparse.Namespace
) -> dict[str, Any]:
    """Quantize with the script of llm-compressor, on the same samples."""
    image = int(processor.config.raw["image_token_id"])
    path, out = options.work / "samples.safetensors", options.work / LLM_COMPRESSOR
    samples.write([inputs_of(prompt, image) for prompt in drawn], path)
    shutil.rmtree(out, ignore_errors=True)
    jobs, failed = options.work / "jobs.json", options.work / "failed.json"
    job = Job("3b", LLM_COMPRESSOR, "w4a16", "gptq", 0, source, path, "whole pass", out)
    write_jobs([job], jobs)
    script = ["-m", "peers.with_llmcompressor", "--jobs", str(jobs), "--failed", str(failed)]
    threads = ["--threads", str(torch.get_num_threads())]
    clean = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    clean |= {"PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1"}
    usage = timed([str(python_of(LLM_COMPRESSOR)), *script, *threads], clean, options.work)
    if reasons := json.loads(failed.read_text()):
        sys.exit(f"{LLM_COMPRESSOR}: {reasons}")
    version = json.loads((out / RECORD).read_text())["version"]
    return usage | {"version": version}


def timed(
    command: Sequence[str], environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> dict[str, Any]:
    """Run a process; return its seconds and its peak resident memory in bytes."""
    return dict(run_measured(command, environment, cwd)._asdict())


def errors(source: Path, folders: Sequence[Path], prompts: Sequence[Prompt]) -> list[float]:
    """Squared error of each checkpoint's logits, relative to the squared logits of the source."""
    base = load_model(source, device="cpu", dtype="fp32")
    result = []
    for folder in folders:
        model = load_quantized(folder, device="cpu", dtype="fp32")
        sums = [_squares(base, model, prompt) for prompt in prompts]
        result.append(sum(error for error, _ in sums) / sum(size for _, size in sums))
    return result


@torch.inference_mode()
def _squares(base: QwenVL, model: QwenVL, prompt: Prompt) -> tuple[float, float]:
    """Squared error of the logits, and the squares of the baseline's."""
    expected, actual = base([prompt])[0].double(), model([prompt])[0].double()
    return float((actual - expected).square().sum()), float(expected.square().sum())


def markdown(results: Mapping[str, Any]) -> str:
    """Table of the results."""
    peer = results["rows"][LLM_COMPRESSOR]
    body = [
        [
            name if "version" not in row else f"{name} {row['version']}",
            f"{row['seconds']:.0f}",
            f"{peer['seconds'] / row['seconds']:.2f}",
            f"{row['peak_bytes'] / GIB:.1f}",
            f"{row['logit_error']:.3e}",
        ]
        for name, row in results["rows"].items()
    ]
    head = ["", "seconds", "times as fast", "peak GiB", "logit error"]
    table = tabulate(body, head, tablefmt="github", disable_numparse=True)
    return (
        f"# A whole pass of GPTQ\n\n{describe(dict(results))}\n\n{results['layers']} decoder "
        f"layers with the widths of Qwen2.5-VL-3B, random weights, {results['samples']} samples of "
        f"{results['tokens']} tokens in total, int4 in groups of 128. Each library in a separate "
        "process, including loading and writing; squared error of the logits relative to their "
        f"squares, on {HELD_OUT} held-out samples.\n\n{table}\n"
    )


if __name__ == "__main__":
    main()
