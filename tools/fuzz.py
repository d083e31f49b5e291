"""Fuzz every reader of vlpress with damaged files, guided by coverage.

    python tools/fuzz.py [--cases 10000] [--only NAME ...]

Each reader gets mutations of a valid file from libFuzzer (through atheris). It has to read them, or
to raise a ValueError or OSError with a message of one line; anything else ends the run with 1, and
libFuzzer stores the bytes in out/fuzz/NAME.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType

import fuzz_side_files
from fuzz_container import container_seed, damage_container
from fuzz_json import damage_json
from fuzz_template import damage_template
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 8192
"""Largest size of a file in bytes; every valid one is smaller."""
SECONDS = 60
"""Timeout in seconds for one file."""


@dataclass(frozen=True)
class Reader:
    """A reader and the name of its file."""

    file: str
    seed: Callable[[], bytes]
    """Writes a valid file."""
    read: Callable[[Path], object]
    """Reads the file at a path."""


def config_seed() -> bytes:
    """Config of the built-in model."""
    from vlpress.model.loading import resolve_model

    return (resolve_model("tiny") / "config.json").read_bytes()


def index_seed() -> bytes:
    """Index of the built-in model's weights."""
    names = ["model.norm.weight", "model.embed_tokens.weight", "visual.merger.ln_q.weight"]
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "a.safetensors")}
    return json.dumps(index).encode()


def recipe_seed() -> bytes:
    """Recipe with a step of each kind."""
    return b"""name = "mine"
[calibration]
samples = 8
token_weights = "balanced"
[[step]]
method = "smoothquant"
alpha = 0.5
[[step]]
method = "gptq"
bits = 4
group_size = 32
targets = ["model.layers.*"]
"""


def samples_seed() -> bytes:
    """Two samples, one with an image."""
    file = io.BytesIO()
    Image.new("RGB", (30, 30)).save(file, "PNG")
    image = base64.b64encode(file.getvalue()).decode()
    rows = [
        {"image": image, "question": "What is it?", "answer": "Nothing."},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def tsv_seed() -> bytes:
    """Two questions in the layout of MMBench."""
    file = io.BytesIO()
    Image.new("RGB", (30, 30)).save(file, "JPEG")
    image = base64.b64encode(file.getvalue()).decode()
    head = "index\timage\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\tl2-category\tsplit\n"
    rows = [f"{i}\t{image}\tWhich?\t\tone\ttwo\t\t\tA\tx\ty\tdev\n" for i in (1, 1000001)]
    return (head + "".join(rows)).encode()


def predictions_seed() -> bytes:
    """Two stored answers."""
    from vlpress.eval.answering.predictions import Prediction, RecordStore, prediction_record

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.jsonl"
        store = RecordStore(path, "predictions", {"a": 1})
        store.append([prediction_record(Prediction(i, "x", 1, True, 0.5)) for i in "ab"])
        store.close()
        return path.read_bytes()


def journal_seed() -> bytes:
    """Two finished blocks."""
    from vlpress.quant.driver.journal import JOURNAL, Journal

    with tempfile.TemporaryDirectory() as folder:
        work = Journal(Path(folder))
        for block in range(2):
            work.add({"block": str(block), "next": None, "parted": [], "waiting": []}, {})
        return (Path(folder) / JOURNAL).read_bytes()


def read_config(path: Path) -> object:
    """Read the config of a model."""
    from vlpress.model.config import ModelConfig

    return ModelConfig.from_folder(path.parent)


def read_index(path: Path) -> object:
    """Read the index of a checkpoint."""
    from vlpress.model.checkpoint import CheckpointReader

    return list(CheckpointReader(path.parent).names())


def read_recipe(path: Path) -> object:
    """Read a recipe."""
    from vlpress.quant.recipe.recipe import Recipe

    return Recipe.resolve(str(path))


def read_samples(path: Path) -> object:
    """Read calibration samples."""
    from vlpress.calib.samples.draw import load_samples

    return load_samples(path, n=2, seed=0)


def read_tsv(path: Path) -> object:
    """Read a benchmark."""
    from vlpress.eval.tasks import open_task

    return open_task(f"MMBench_DEV_EN={path}")


def read_stored(path: Path) -> object:
    """Read predictions."""
    from vlpress.eval.answering.predictions import read_predictions

    return read_predictions(path)


def read_journal(path: Path) -> object:
    """Read the journal of a run."""
    from vlpress.quant.driver.journal import Journal

    return Journal(path.parent).records


def read_container(path: Path) -> object:
    """Read the tensors of a packed file."""
    from vlpress.model.checkpoint import CheckpointReader

    reader = CheckpointReader(path.parent)
    return [reader.tensor(name) for name in reader.names()]


READERS = {
    "config": Reader("config.json", config_seed, read_config),
    "index": Reader("model.safetensors.index.json", index_seed, read_index),
    "recipe": Reader("recipe.toml", recipe_seed, read_recipe),
    "samples": Reader("samples.jsonl", samples_seed, read_samples),
    "tsv": Reader("bench.tsv", tsv_seed, read_tsv),
    "predictions": Reader("predictions.jsonl", predictions_seed, read_stored),
    "journal": Reader("journal.jsonl", journal_seed, read_journal),
    "container": Reader("model.safetensors.vlz", container_seed, read_container),
}
READERS |= {
    name: Reader(name, fuzz_side_files.seed(name), fuzz_side_files.reader(*others))
    for name, others in fuzz_side_files.SIDE_FILES.items()
}


def attempt(reader: Reader, data: bytes, folder: Path) -> str:
    """Run a reader on bytes; returns "read" or "refused".

    Raises:
        AssertionError: the error message has several lines.
        Exception: an exception other than ValueError and OSError.
    """
    path = folder / reader.file
    path.write_bytes(data)
    try:
        reader.read(path)
    except (ValueError, OSError) as error:
        message = str(error)
        assert message and "\n" not in message.strip(), repr(message)
        return "refused"
    return "read"


def damage(file: str, data: bytes, seed: int) -> bytes | None:
    """Change a file so that it stays valid in its format; None for other formats.

    Args:
        file: name of the file, whose suffix gives the format.
        data: content.
        seed: determines positions and changes.
    """
    if file.endswith(".jinja"):
        return damage_template(data, seed)
    if file.endswith(".vlz"):
        return damage_container(data, seed)
    return damage_json(data, seed) if file.endswith(".json") else None


def main() -> None:
    """Fuzz all readers, each in a separate process, because libFuzzer ends its process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", type=int, default=10000)
    parser.add_argument("--only", nargs="+", choices=list(READERS), default=list(READERS))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        fuzz(options.only[0], options.cases)
    broken = []
    for name in options.only:
        given = ["--inside", "--only", name, "--cases", str(options.cases)]
        if subprocess.run([sys.executable, __file__, *given], check=False).returncode:
            broken.append(name)
        print(f"{name}: {'BROKEN' if name in broken else 'sound'}", flush=True)
    sys.exit(bool(broken))


def readable(file: str, data: bytes, seed: int) -> bytes | None:
    """In three of four cases, a change that keeps the format valid, if there is one."""
    return None if seed % 4 == 0 else damage(file, data, seed)


def own_functions() -> Iterator[FunctionType]:
    """Imported functions and methods of vlpress.

    They are instrumented one by one: the import hook of atheris has no effect on an editable
    installation, whose modules have a custom loader.
    """
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "vlpress":
            for value in list(vars(module).values()):
                members = vars(value).values() if isinstance(value, type) else [value]
                for member in members:
                    inner = getattr(member, "__func__", getattr(member, "fget", member))
                    if isinstance(inner, FunctionType) and _is_written_in(inner, name):
                        yield inner


def _is_written_in(function: FunctionType, module: str) -> bool:
    # Generated methods of dataclasses have no file.
    return function.__module__ == module and function.__code__.co_filename.endswith(".py")


def fuzz(name: str, cases: int) -> None:
    """Fuzz one reader; does not return."""
    import atheris

    reader, artifacts = READERS[name], ROOT / "out" / "fuzz" / name
    artifacts.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        scratch = Path(folder) / "place"
        scratch.mkdir()
        valid = reader.seed()
        attempt(reader, valid, scratch)  # imports the modules of the reader
        for function in own_functions():
            atheris.instrument_func(function)
        (corpus / "seed").write_bytes(valid)
        flags = [f"-runs={cases}", f"-artifact_prefix={artifacts}/", "-verbosity=0"]
        flags += [f"-max_len={LONGEST}", f"-timeout={SECONDS}"]

        def once(data: bytes) -> None:
            attempt(reader, data, scratch)

        def mutate(data: bytes, most: int, seed: int) -> bytes:
            changed = readable(reader.file, data, seed)
            return atheris.Mutate(data, most) if changed is None else changed[:most]

        atheris.Setup([sys.argv[0], *flags, str(corpus)], once, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
