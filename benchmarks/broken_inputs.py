"""Broken and hostile input: the error for each, and that nothing is lost or half-written.

    python benchmarks/broken_inputs.py [--only NAME ...]

Each case is a copy of the built-in model, or of the files around it, with one fault. The command
has to exit with code 2 and one line, write no output, and leave the input unchanged. Images of
unusual formats have to be accepted. Writes results/broken_inputs.json and results/broken_inputs.md;
exits with 1 if a case behaves differently.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common.machine import describe, provenance
from PIL import Image
from safetensors.torch import load_file, save_file
from tabulate import tabulate

from vlpress.common.output_dir import sole_use
from vlpress.model.loading import resolve_model
from vlpress.model.weight_files import digest_folder

HERE = Path(__file__).resolve().parent
WEIGHTS = "model.safetensors"
SMALL_FILES = 200_000
"""Largest file size in the cases that simulate a full disk."""


@dataclass(frozen=True)
class Workspace:
    """Working folders of a case."""

    model: Path
    """A copy of the built-in model."""
    side: Path
    """A folder for all other files."""
    out: Path


Setup = Callable[[Workspace], list[str] | None]
"""Introduces a fault; returns additional arguments for `vlpress quantize`."""
CASES: dict[str, Setup] = {}
ACCEPTED: set[str] = set()
"""Cases without a fault."""
FULL: set[str] = set()
"""Cases with limited file sizes."""


def case(name: str) -> Callable[[Setup], Setup]:
    """Register a case under a name."""

    def note(setup: Setup) -> Setup:
        CASES[name] = setup
        return setup

    return note


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    """Split a safetensors file into its header and the bytes after it."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def put_header(workspace: Workspace, change: Callable[[dict[str, Any], list[str]], None]) -> None:
    """Rewrite the header of the weights."""
    file = workspace.model / WEIGHTS
    header, rest = header_of(file)
    change(header, [name for name in header if name != "__metadata__"])
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + rest)


@case("safetensors: header longer than the file")
def _(workspace: Workspace) -> None:
    file = workspace.model / WEIGHTS
    file.write_bytes(struct.pack("<Q", 2**40) + file.read_bytes()[8:])


@case("safetensors: header is not JSON")
def _(workspace: Workspace) -> None:
    file = workspace.model / WEIGHTS
    data = bytearray(file.read_bytes())
    data[8:12] = b"\xff\xfe{["
    file.write_bytes(bytes(data))


@case("safetensors: offsets overlap")
def _(workspace: Workspace) -> None:
    def change(header: dict[str, Any], names: list[str]) -> None:
        header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]

    put_header(workspace, change)


@case("safetensors: offsets beyond the end")
def _(workspace: Workspace) -> None:
    def change(header: dict[str, Any], names: list[str]) -> None:
        begin, end = header[names[-1]]["data_offsets"]
        header[names[-1]]["data_offsets"] = [begin + 2**40, end + 2**40]

    put_header(workspace, change)


@case("safetensors: shape and bytes disagree")
def _(workspace: Workspace) -> None:
    def change(header: dict[str, Any], names: list[str]) -> None:
        header[names[0]]["shape"] = [2**31, 2**31]

    put_header(workspace, change)


@case("safetensors: truncated")
def _(workspace: Workspace) -> None:
    file = workspace.model / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1000])


def put_index(workspace: Workspace, file: str) -> None:
    """Write an index of the weights."""
    names = [name for name in header_of(workspace.model / WEIGHTS)[0] if name != "__metadata__"]
    (workspace.model / WEIGHTS).rename(workspace.side / WEIGHTS)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, file)}
    (workspace.model / "model.safetensors.index.json").write_text(json.dumps(index))


@case("index: path with ..")
def _(workspace: Workspace) -> None:
    put_index(workspace, f"../{workspace.side.name}/{WEIGHTS}")


@case("index: absolute path")
def _(workspace: Workspace) -> None:
    put_index(workspace, str(workspace.side / WEIGHTS))


@case("index: missing file")
def _(workspace: Workspace) -> None:
    put_index(workspace, "model-00001-of-00001.safetensors")


def put_config(workspace: Workspace, **values: Any) -> None:
    """Change values in config.json."""
    file = workspace.model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@case("config: hidden_size 2**40")
def _(workspace: Workspace) -> None:
    put_config(workspace, hidden_size=2**40)


@case("config: -1 layers")
def _(workspace: Workspace) -> None:
    put_config(workspace, num_hidden_layers=-1)


@case("config: vocab_size of another model")
def _(workspace: Workspace) -> None:
    put_config(workspace, vocab_size=10**9)


@case("config: 100 000 brackets")
def _(workspace: Workspace) -> None:
    (workspace.model / "config.json").write_text("[" * 100_000)


@case("config: unsupported model type")
def _(workspace: Workspace) -> None:
    put_config(workspace, model_type="llama")


def put_value(workspace: Workspace, value: float) -> None:
    """Write a value into a weight of the decoder."""
    tensors = load_file(workspace.model / WEIGHTS)
    name = next(name for name in sorted(tensors) if name.endswith("mlp.up_proj.weight"))
    tensors[name][1, 2] = value
    save_file(tensors, workspace.model / WEIGHTS, {"format": "pt"})


@case("weights: NaN")
def _(workspace: Workspace) -> None:
    put_value(workspace, torch.nan)


@case("weights: infinity")
def _(workspace: Workspace) -> None:
    put_value(workspace, torch.inf)


@case("tokenizer: no image tokens")
def _(workspace: Workspace) -> None:
    for file in workspace.model.glob("*token*.json"):
        file.write_text(file.read_text().replace("<|image_pad|>", "<|other_pad|>"))


@case("tokenizer: truncated")
def _(workspace: Workspace) -> None:
    file = workspace.model / "tokenizer.json"
    file.write_text(file.read_text()[:5000])


@case("tokenizer: missing")
def _(workspace: Workspace) -> None:
    (workspace.model / "tokenizer.json").unlink()


def samples_of(workspace: Workspace, *images: bytes | str) -> list[str]:
    """Write a file of samples with images."""
    lines = []
    for number, image in enumerate(images):
        shown = image
        if isinstance(image, bytes):
            shown = f"{number}.img"
            (workspace.side / shown).write_bytes(image)
        sample = {"image": shown, "question": "What is this?", "answer": "A picture."}
        lines.append(json.dumps(sample) + "\n")
    file = workspace.side / "samples.jsonl"
    file.write_text("".join(lines))
    return ["--calib", str(file), "--calib-samples", str(len(images))]


def encode_image(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    """Write a small image."""
    file = io.BytesIO()
    Image.new(mode, (60, 40), 5).save(file, kind, **options)
    return file.getvalue()


@case("image: a decompression bomb of 60000 x 60000")
def _(workspace: Workspace) -> list[str]:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(10**6)))
    return samples_of(workspace, b"\x89PNG\r\n\x1a\n" + head + rows + chunk(b"IEND", b""))


@case("image: truncated")
def _(workspace: Workspace) -> list[str]:
    return samples_of(workspace, encode_image("JPEG")[:300])


@case("image: not an image")
def _(workspace: Workspace) -> list[str]:
    return samples_of(workspace, b"<svg/>")


@case("image: missing")
def _(workspace: Workspace) -> list[str]:
    return samples_of(workspace, "nowhere.png")


@case("image: invalid base64")
def _(workspace: Workspace) -> list[str]:
    text = base64.b64encode(encode_image("PNG")).decode()
    return samples_of(workspace, "data:image/png;base64," + text[:-9] + "!!!")


@case("images: CMYK, 16 bits, animated, palette, grey with alpha")
def _(workspace: Workspace) -> list[str]:
    frames = [Image.new("P", (60, 40), colour) for colour in (1, 2)]
    animated = io.BytesIO()
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    kinds = [
        encode_image("JPEG", "CMYK"),
        encode_image("PNG", "I;16"),
        animated.getvalue(),
        encode_image("PNG", "P"),
        encode_image("PNG", "LA"),
    ]
    return samples_of(workspace, *kinds)


ACCEPTED.add("images: CMYK, 16 bits, animated, palette, grey with alpha")


@case("samples: a line that is not JSON")
def _(workspace: Workspace) -> list[str]:
    arguments = samples_of(workspace, encode_image("PNG"))
    file = workspace.side / "samples.jsonl"
    file.write_text(file.read_text() + "{oops\n")
    return arguments


@case("samples: empty file")
def _(workspace: Workspace) -> list[str]:
    return samples_of(workspace)[:2]


@case("recipe: unknown key")
def _(workspace: Workspace) -> list[str]:
    file = workspace.side / "recipe.toml"
    file.write_text('[[step]]\nmethod = "gptq"\nbits = 4\ngroup_sise = 128\n')
    return ["--recipe", str(file)]


@case("recipe: not TOML")
def _(workspace: Workspace) -> list[str]:
    file = workspace.side / "recipe.toml"
    file.write_text("{" * 1000)
    return ["--recipe", str(file)]


@case("output: a file")
def _(workspace: Workspace) -> None:
    workspace.out.write_text("mine")


@case("output: a folder with other files")
def _(workspace: Workspace) -> None:
    workspace.out.mkdir()
    (workspace.out / "thesis.txt").write_text("mine")


@case("output: not writable")
def _(workspace: Workspace) -> list[str]:
    return ["--out", "/proc/vlpress/out"]


@case("output: disk full")
def _(workspace: Workspace) -> None:
    FULL.add("output: disk full")


@case("output: in use by another run")
def _(workspace: Workspace) -> None:
    workspace.out.with_name("locked").touch()


def main() -> None:
    """Run all cases and write the result files."""
    options = parse()
    rows = []
    for name, setup in CASES.items():
        if options.only is None or any(part in name for part in options.only):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(attempt(name, setup, Path(folder)))
            print(rows[-1]["ok"], name, "|", rows[-1]["said"], flush=True)
    results = provenance() | {"rows": rows}
    if options.only is None:
        stored = HERE / "results" / "broken_inputs.json"
        stored.write_text(json.dumps(results, indent=1) + "\n")
        stored.with_suffix(".md").write_text(markdown(results))
    if not all(row["ok"] for row in rows):
        sys.exit("a case did not end as it should")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", help="cases whose names hold one of these")
    return parser.parse_args()


def attempt(name: str, setup: Setup, folder: Path) -> dict[str, Any]:
    """Set up a case, run the command, and check its exit code, output and input."""
    workspace = Workspace(folder / "model", folder / "side", folder / "out")
    shutil.copytree(resolve_model("tiny"), workspace.model)
    workspace.side.mkdir()
    more = setup(workspace) or []
    before = state(folder), digest_folder(workspace.model)
    held = workspace.out.with_name("locked").exists()
    if held:
        with sole_use(workspace.out):
            done = run(workspace, more, full=name in FULL)
    else:
        done = run(workspace, more, full=name in FULL)
    lines = done.stderr.strip().splitlines()
    untouched = digest_folder(workspace.model) == before[1]
    if name in ACCEPTED:
        ok = done.returncode == 0 and untouched
    else:
        unchanged = all(state(folder).get(path) == data for path, data in before[0].items())
        new = sorted(set(state(folder)) - set(before[0]) - {".out.vlpress-lock"})
        partial = [path for path in new if not path.startswith(".out.vlpress-work")]
        ok = done.returncode == 2 and untouched and unchanged and not partial
        ok = ok and lines[-1].startswith("vlpress: error: ") and "Traceback" not in done.stderr
    message = lines[-1].removeprefix("vlpress: error: ").replace(str(folder), "…") if lines else ""
    return {"case": name, "code": done.returncode, "said": message, "ok": ok}


def run(workspace: Workspace, more: list[str], *, full: bool) -> subprocess.CompletedProcess[str]:
    """Run `vlpress quantize` on the model."""
    arguments = [
        str(workspace.model),
        "--out",
        str(workspace.out),
        "--calib-samples",
        "2",
        "--device",
        "cpu",
    ]
    return subprocess.run(
        [sys.executable, "-m", "vlpress", "quantize", *arguments, "--json", *more],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        preexec_fn=_small_files if full else None,
    )


def _small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_FILES, SMALL_FILES))


def state(folder: Path) -> dict[str, bytes]:
    """Contents of all files outside the model, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "model" not in path.relative_to(folder).parts[:1]
    }


def markdown(results: Mapping[str, Any]) -> str:
    """Results as a Markdown table."""
    body = [[row["case"], row["code"], row["said"]] for row in results["rows"]]
    table = tabulate(body, ["input", "code", "message"], tablefmt="github")
    return (
        f"# Broken input\n\n{describe(dict(results))}\n\n`vlpress quantize` of a copy of the "
        "built-in model with one fault. Each case left its input unchanged and wrote no output "
        "(an interrupted run keeps its finished blocks for a resume).\n\n" + table + "\n"
    )


if __name__ == "__main__":
    main()
