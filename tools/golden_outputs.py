"""Record checksums of the outputs of vlpress, and check later that no byte has changed.

    python tools/golden_outputs.py record golden.json
    python tools/golden_outputs.py check golden.json

For changes that must not alter any result. Quantizes the built-in model with every method, in every
format, with the vision tower, static activations and token weights, and evaluates one run. Bytes
are only reproducible with the same kind of machine, library versions and number of threads, so a
file of checksums belongs to the machine that recorded it: `check` fails on another one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlpress.common.environment import device_name, versions

TOKEN_WEIGHTS = """name = "weighted"
[calibration]
samples = 16
token_weights = "token-gradient"
[[step]]
method = "gptq"
bits = 4
group_size = 64
targets = ["model.layers.*"]
"""
VOLATILE = ("speed", "memory", "command", "evaluated")
"""Keys of report.json with times and peaks, or the command with its output folder."""
PER_ANSWER = ("seconds", "seal")
"""Keys of a stored answer with its duration, and the checksum that covers it."""


@dataclass(frozen=True)
class Case:
    """One checkpoint to write."""

    recipe: str  # a preset's name, or the text of a TOML file
    format: str = "auto"


CASES: Mapping[str, Case] = {
    "rtn-gptq_v2": Case("w4a16-rtn", "gptq_v2"),
    "gptq-gptq": Case("w4a16", "gptq"),
    "gptq-awq": Case("w4a16", "awq"),
    "gptq-3-bits": Case("w3a16"),
    "gptaq": Case("w4a16-gptaq"),
    "awq": Case("w4a16-awq"),
    "smoothquant-dynamic": Case("w8a8"),
    "smoothquant-static": Case("w8a8-static"),
    "w4a8": Case("w4a8", "compressed-tensors"),
    "vision": Case("vision-w8a8+decoder-w4a16"),
    "token-weights": Case(TOKEN_WEIGHTS),
}


def main() -> None:
    """Record or check."""
    options = parse()
    made_on = {
        "device": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    before: dict[str, Any] = {}
    if options.verb == "check":
        before = json.loads(options.file.read_text())
        if before["made_on"] != made_on:
            sys.exit(f"{options.file} was recorded on {before['made_on']}, this is {made_on}")
    with tempfile.TemporaryDirectory() as folder:
        files = dict(checksums(Path(folder)))
    if options.verb == "record":
        options.file.write_text(json.dumps({"made_on": made_on, "files": files}, indent=1) + "\n")
        print(f"{len(files)} checksums written to {options.file}")
        return
    changed = differences(before["files"], files)
    print(f"{len(files) - len(changed)} of {len(files)} outputs have the bytes of {options.file}")
    sys.exit("\n".join(changed) if changed else 0)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("verb", choices=["record", "check"])
    parser.add_argument("file", type=Path)
    return parser.parse_args()


def checksums(folder: Path) -> Iterator[tuple[str, str]]:
    """Write every output to `folder`; return their sha256 by name."""
    for name, case in CASES.items():
        recipe, out = case.recipe, folder / name
        if "\n" in recipe:
            (folder / "recipe.toml").write_text(recipe)
            recipe = str(folder / "recipe.toml")
        vlpress("quantize", "tiny", "-o", out, "--recipe", recipe, "--format", case.format)
        for path in sorted(out.rglob("*")):
            if path.is_file():
                yield f"{name}/{path.relative_to(out)}", sha256(path.read_bytes())
    out = folder / "run"
    vlpress("run", "tiny", "-o", out, "--limit", "60")
    for path in sorted(out.glob("eval/*/*/predictions.jsonl")):
        yield f"run/{path.relative_to(out)}", sha256(without_times(path))
    report = json.loads((out / "report" / "report.json").read_text())
    text = json.dumps({k: v for k, v in report.items() if k not in VOLATILE}, sort_keys=True)
    yield "run/report/report.json", sha256(text.replace(str(folder), "OUT").encode())


def without_times(predictions: Path) -> bytes:
    """Stored answers as JSON lines, without their durations."""
    records = map(json.loads, predictions.read_text("utf-8").splitlines())
    timeless = [{k: v for k, v in r.items() if k not in PER_ANSWER} for r in records]
    return "\n".join(json.dumps(record, sort_keys=True) for record in timeless).encode()


def vlpress(*arguments: object) -> None:
    """Run the command line; its errors end this program."""
    command = [sys.executable, "-m", "vlpress", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")


def sha256(data: bytes) -> str:
    """sha256 as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """One line for every changed, new or missing output."""
    lines = []
    for name in sorted(before.keys() | now.keys()):
        if name not in now:
            lines.append(f"{name}: is not written any more")
        elif name not in before:
            lines.append(f"{name}: is new")
        elif before[name] != now[name]:
            lines.append(f"{name}: has changed")
    return lines


if __name__ == "__main__":
    main()
