"""Speed of a quantized model compared with llama.cpp, at the widths of the 3B model.

    python benchmarks/whole_model.py [--layers 12] [--rounds 3] [--work out/whole-model]

Writes a checkpoint of random weights (make_model.py), rounds it to w4a16, writes the same weights
for llama.cpp (peers/llamacpp.py, in the environment that `make bench` builds), and times both in
turns with the same number of threads: a prompt of 1024 tokens and 32 generated tokens. Ratios are
between medians of one run. Each generated token reads all weights once; the table therefore also
shows the ratio at equal memory bandwidth. Writes results/whole_model.json and
results/whole_model.md, or files of another --name. On a processor with AVX-512, a comparison of the
AVX2 kernels needs the variables of kernel_speed.py and a llama.cpp that was compiled with
CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX512=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON".
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import make_model
import torch
from common.machine import ROOT, describe, provenance
from tabulate import tabulate

from vlpress.model.config import ModelConfig
from vlpress.model.families import family_of

HERE = Path(__file__).resolve().parent
LLAMA = HERE / "peers" / "llamacpp.py"
ENVIRONMENT = ROOT / ".interop" / "llama-cpp-python"
RECIPE = "w4a16-rtn"
# vlpress: checkpoint and options of `vlpress bench model`. llama.cpp: type and head.
VLPRESS_RUNS = {
    "bf16": ("bf16", ()),
    "w4a16": ("w4a16", ()),
    "w4a16, head w8a16": ("w4a16", ("--head", "w8a16")),
    "w4a8": ("w4a16", ("--activations", "int8")),
    "w4a8, head w8a16": ("w4a16", ("--activations", "int8", "--head", "w8a16")),
}
LLAMACPP_RUNS = {
    "llama.cpp bf16": ("bf16", "bf16"),
    "llama.cpp q4_0": ("q4_0", "bf16"),
    "llama.cpp q4_0, head q8_0": ("q4_0", "q8_0"),
    "llama.cpp q4_k, head q8_0": ("q4_k", "q8_0"),
}
# Bits per weight including scales: decoder layers, head.
BITS = {
    "bf16": (16, 16),
    "w4a16": (4.125, 16),
    "w4a16, head w8a16": (4.125, 8.125),
    "w4a8": (4.125, 16),
    "w4a8, head w8a16": (4.125, 8.125),
    "llama.cpp bf16": (16, 16),
    "llama.cpp q4_0": (4.5, 16),
    "llama.cpp q4_0, head q8_0": (4.5, 8.5),
    "llama.cpp q4_k, head q8_0": (4.5, 8.5),
}
# vlpress, compared with, which seconds, smallest ratio of speeds.
TARGETS_AVX2 = (
    ("w4a16", "llama.cpp q4_0", "token_seconds", 1.2),
    ("w4a16, head w8a16", "llama.cpp q4_0, head q8_0", "token_seconds", 1.2),
    ("w4a16", "llama.cpp q4_0", "prefill_seconds", 1.2),
    ("w4a8", "llama.cpp q4_0", "prefill_seconds", 1.2),
)
TARGETS_AVX512 = (
    ("w4a16", "llama.cpp q4_0", "token_seconds", 1.3),
    ("w4a16, head w8a16", "llama.cpp q4_0, head q8_0", "token_seconds", 1.3),
    ("w4a8", "llama.cpp q4_0", "prefill_seconds", 2.0),
    ("w4a16", "llama.cpp q4_0", "prefill_seconds", 1.5),
    ("w4a16", "bf16", "prefill_seconds", 0.95),
    ("w4a16", "bf16", "layer_seconds", 4.0),
)
NAMES = {
    "token_seconds": "tokens of the answer",
    "prefill_seconds": "prompt",
    "layer_seconds": "tokens of the answer, without the head",
}


def main() -> None:
    """Write missing models, measure in turns, and write the two result files."""
    options = parse()
    python = options.llamacpp / "bin" / "python"
    if not python.is_file():
        sys.exit(f"{python} is missing; `make bench` builds the environment")
    options.work.mkdir(parents=True, exist_ok=True)
    folders = write_vlpress(options.work, options.layers)
    files = write_llamacpp(python, options.work, folders["bf16"], options.threads)
    runs_by_name: dict[str, list[dict[str, Any]]] = {
        name: [] for name in (*VLPRESS_RUNS, *LLAMACPP_RUNS)
    }
    for _ in range(options.rounds):
        for name, (folder, extra) in VLPRESS_RUNS.items():
            runs_by_name[name].append(time_vlpress(folders[folder], extra, options.threads))
        for name in LLAMACPP_RUNS:
            runs_by_name[name].append(time_llamacpp(python, files[name], options.threads))
    sizes = weights_of(folders["bf16"])
    rows = {name: middle(runs) | read_of(name, sizes) for name, runs in runs_by_name.items()}
    results = provenance() | {"layers": options.layers, "rounds": options.rounds, "rows": rows}
    limits = TARGETS_AVX2 if results["machine"]["kernels"] == "avx2" else TARGETS_AVX512
    results["targets"] = targets(rows, limits)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / f"{options.name}.md").write_text(markdown(results))
    print(markdown(results))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=12, help="of the decoder")
    parser.add_argument("--rounds", type=int, default=3, help="times that everything is run")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "whole-model")
    parser.add_argument("--llamacpp", type=Path, default=ENVIRONMENT, help="its environment")
    parser.add_argument("--name", default="whole_model", help="of the result files")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    return parser.parse_args()


def write_vlpress(work: Path, layers: int) -> dict[str, Path]:
    """Write the checkpoint in bf16 and quantized, unless a previous run did."""
    folders = {"bf16": work / f"3b-{layers}", "w4a16": work / f"3b-{layers}-w4a16"}
    if not folders["bf16"].is_dir():
        partial = folders["bf16"].with_suffix(".partial")
        partial.mkdir(parents=True, exist_ok=True)
        make_model.write(make_model.config_of("qwen2_5", "3b", layers, 1), partial, 0)
        partial.rename(folders["bf16"])
    if not folders["w4a16"].is_dir():
        source = str(folders["bf16"])
        vlpress("quantize", source, "-o", str(folders["w4a16"]), "--recipe", RECIPE)
    return folders


def write_llamacpp(python: Path, work: Path, source: Path, threads: int) -> dict[str, Path]:
    """Write the same weights as GGUF, unless a previous run did."""
    files = {}
    for name, (kind, head) in LLAMACPP_RUNS.items():
        files[name] = work / f"{source.name}-{kind}-{head}.gguf"
        if not files[name].is_file():
            partial = files[name].with_suffix(".partial")
            arguments = ["--type", kind, "--head", head, "--threads", str(threads)]
            run([str(python), str(LLAMA), "write", str(source), str(partial), *arguments])
            partial.rename(files[name])
    return files


def time_vlpress(folder: Path, extra: tuple[str, ...], threads: int) -> dict[str, Any]:
    """Run `vlpress bench model` once."""
    text = vlpress("bench", "model", "--model", str(folder), "--json", *extra, threads=threads)
    speed: dict[str, Any] = json.loads(text)
    layers = speed["token_seconds"] - speed["head_seconds"]
    return speed | {"model": folder.name, "layer_seconds": layers}


def time_llamacpp(python: Path, file: Path, threads: int) -> dict[str, Any]:
    """Run llama.cpp once."""
    text = run([str(python), str(LLAMA), "time", str(file), "--threads", str(threads)])
    speed: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return speed


def vlpress(*arguments: str, threads: int | None = None) -> str:
    """Run the command line of the package in a separate process."""
    extra = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return run([sys.executable, "-m", "vlpress", *arguments], extra)


def run(command: list[str], extra: Mapping[str, str] | None = None) -> str:
    """Run a program and return its standard output; stderr is passed through."""
    environment = dict(os.environ) | dict(extra or {})
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return done.stdout


def middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The last run, with the medians of all runs as its seconds."""
    keys = [key for key in runs[-1] if key.endswith("_seconds")]
    return runs[-1] | {key: median(run[key] for run in runs) for key in keys}


def weights_of(folder: Path) -> tuple[int, int]:
    """Number of weights in the decoder layers, and in the head."""
    config = ModelConfig.from_folder(folder)
    linears = family_of(config).linears(config)
    layers = sum(spec.weights for spec in linears if spec.stage == "decoder")
    return layers, config.text.vocab_size * config.text.hidden_size


def read_of(name: str, sizes: tuple[int, int]) -> dict[str, float]:
    """Bytes of weights read per token."""
    bits = BITS[name]
    return {"read_bytes": sum(size * wide / 8 for size, wide in zip(sizes, bits, strict=True))}


def targets(
    rows: Mapping[str, Mapping[str, Any]], limits: Iterable[tuple[str, str, str, float]]
) -> list[dict[str, Any]]:
    """Targets and measured ratios."""
    result = []
    for name, other, seconds, least in limits:
        ratio = rows[other][seconds] / rows[name][seconds]
        what = f"{name} relative to {other}: {NAMES[seconds]}"
        row = {"what": what, "least": least, "found": ratio, "met": ratio >= least}
        if seconds == "token_seconds":
            row["by_bytes"] = rows[other]["read_bytes"] / rows[name]["read_bytes"]
        result.append(row)
    return result


def markdown(results: Mapping[str, Any]) -> str:
    """Results as Markdown."""
    target_rows = [
        [
            row["what"],
            f"{row['least']:.2f}",
            f"{row['found']:.2f}",
            "yes" if row["met"] else "no",
            f"{row['by_bytes']:.2f}" if "by_bytes" in row else "",
        ]
        for row in results["targets"]
    ]
    parts = ("layer_seconds", "head_seconds")
    body = [
        [name, f"{1024 / row['prefill_seconds']:.0f}", f"{1 / row['token_seconds']:.1f}"]
        + [f"{1000 * row[key]:.1f}" if key in row else "" for key in parts]
        + [
            f"{row['read_bytes'] / 1e9:.2f}",
            f"{row['read_bytes'] / row['token_seconds'] / 1e9:.0f}",
        ]
        for name, row in results["rows"].items()
    ]
    peer = next(row for row in results["rows"].values() if "system" in row)
    head = ["", "prompt, tokens/s", "answer, tokens/s", "layers, ms/token", "head, ms/token"]
    head += ["GB/token", "GB/s"]
    target_head = ["times as fast", "at least", "found", "met", "if both read equally fast"]
    speeds = [row["bandwidth"] / 1e9 for row in results["rows"].values() if "bandwidth" in row]
    return (
        f"# A whole model\n\n{describe(dict(results))} llama-cpp-python {peer['version']}.\n\n"
        f"{results['layers']} decoder layers with the widths of Qwen2.5-VL-3B, random weights; "
        f"prompt of 1024 tokens, answer of 32; medians of {results['rounds']} rounds in turns. The "
        "head is in bf16 unless said otherwise. w4a8: the w4a16 checkpoint with `--activations "
        "int8`, which is what llama.cpp does too. Memory was read at "
        f"{min(speeds):.0f} to {max(speeds):.0f} GB/s between the runs.\n\n"
        f"{tabulate(target_rows, target_head, tablefmt='github')}\n\n"
        f"{tabulate(body, head, tablefmt='github')}\n"
    )


if __name__ == "__main__":
    main()
