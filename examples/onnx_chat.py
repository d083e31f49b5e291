"""Answer a question about images from the folder of an ONNX export.

    python examples/onnx_chat.py FOLDER [--image FILE ...] [--max-new-tokens N] QUESTION

needs onnxruntime (or openvino, with `--runtime openvino`), tokenizers, pillow and numpy. FOLDER
comes from `vlpress export --format onnx`; docs/onnx.md describes its files, and this program with
`onnx_inputs.py` follows the section "Host program" there.

Letters in shapes: S tokens, T tokens in the cache, H hidden size.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from onnx_inputs import (
    About,
    Array,
    Grid,
    pad_rows,
    position_ids,
    read_image,
    text_angles,
    to_patches,
    vision_inputs,
)
from PIL import Image
from tokenizers import Tokenizer

QUESTION = "{question}"
DEEPSTACK = "deepstack."
UNFINISHED = "\ufffd"
"""Decoded in place of a character whose bytes are not complete yet."""

Run = Callable[[Sequence[str], Mapping[str, Array]], list[Array]]
"""Runs a graph: names of outputs and values of all inputs to the outputs."""


def load_onnxruntime(path: Path) -> Run:
    """Load a graph on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda names, inputs: session.run(list(names), dict(inputs))


def load_openvino(path: Path) -> Run:
    """Load a graph on the CPU, in fp32: by default OpenVINO may round to bf16 and int8."""
    import openvino

    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    graph = openvino.compile_model(str(path), "CPU", exact)

    def run(names: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        outputs = graph(dict(inputs))
        return [outputs[name] for name in names]

    return run


RUNTIMES: dict[str, Callable[[Path], Run]] = {
    "onnxruntime": load_onnxruntime,
    "openvino": load_openvino,
}


class Graphs:
    """The graphs of an export.

    Args:
        folder: of the export.
        about: export.json.
        load: of `RUNTIMES`.
    """

    def __init__(self, folder: Path, about: About, load: Callable[[Path], Run]) -> None:
        self.folder, self.about, self._load = folder, about, load
        self._loaded: dict[str, Run] = {}

    def run(self, name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a graph, which is loaded on first use; returns its outputs by name."""
        graph = self.about["graphs"][name]
        if name not in self._loaded:
            self._loaded[name] = self._load(self.folder / graph["file"])
        names = [output["name"] for output in graph["outputs"]]
        return dict(zip(names, self._loaded[name](names, inputs), strict=True))


def prompt_ids(tokenizer: Tokenizer, question: str, grids: Sequence[Grid], about: About) -> Array:
    """Tokenize a question with one placeholder token per merged token of its images, int64 [S].

    Raises:
        ValueError: there is no chat template, or the question has placeholder tokens.
    """
    if about["chat"] is None:
        raise ValueError("the export has no chat template; export a complete checkpoint")
    template = about["chat"]["with_image" if grids else "text_only"]
    text = template.replace(QUESTION, question)
    ids = list(tokenizer.encode(text, add_special_tokens=False).ids)
    tokens = about["tokens"]
    count = sum(ids.count(tokens[kind]) for kind in ("image", "video"))
    if count != bool(grids):
        raise ValueError("the question contains placeholder tokens of images; remove them")
    if grids:
        start = ids.index(tokens["image"]) - 1
        ids[start : start + 3] = [
            token for grid in grids for token in image_ids(grid, tokens, about["vision"])
        ]
    return np.array(ids, np.int64)


def image_ids(grid: Grid, tokens: About, vision: About) -> list[int]:
    """Tokens of one image: its placeholders between the marks of its start and its end."""
    placeholders = [tokens["image"]] * (math.prod(grid) // vision["merge_size"] ** 2)
    return [tokens["vision_start"], *placeholders, tokens["vision_end"]]


def embed(ids: Array, graphs: Graphs) -> Array:
    """Look up the embeddings of tokens, float32 [1, S, H]."""
    about = graphs.about["embedding"]
    if "embedding" in graphs.about["graphs"]:
        return graphs.run("embedding", {"input_ids": ids[None]})["inputs_embeds"]
    table = np.memmap(graphs.folder / about["file"], "<f2", "r", shape=tuple(about["shape"]))
    return table[ids].astype(np.float32)[None]


def token_inputs(
    ids: Array, positions: Array, features: Mapping[str, Array], graphs: Graphs
) -> dict[str, Array]:
    """Make the inputs that describe new tokens.

    Args:
        ids: int64 [S].
        positions: int64 [3, S].
        features: outputs of the vision graph, for all placeholder tokens; empty without images.
        graphs: of the export.
    """
    about = graphs.about
    embeds = np.array(embed(ids, graphs))  # a copy, which can be written to
    values = {"inputs_embeds": embeds, **text_angles(positions, about["text"])}
    for index in range(about["vision"]["deepstack"]):
        values[f"{DEEPSTACK}{index}"] = np.zeros_like(embeds)
    is_image = ids == about["tokens"]["image"]
    for name, rows in features.items():
        values["inputs_embeds" if name == "image_features" else name][0, is_image] = rows
    return values


def pad_tokens(inputs: Mapping[str, Array], length: int) -> dict[str, Array]:
    """Add pads to the end of a prompt, whose angles are zero."""
    return {
        name: pad_rows(values[0], length, name == "cos")[None] for name, values in inputs.items()
    }


def empty_cache(text: About) -> dict[str, Array]:
    """Make the cache of a prompt without earlier tokens."""
    empty = np.zeros((1, text["kv_heads"], 0, text["head_dim"]), np.float32)
    names = ("key", "value")
    return {f"past_key_values.{i}.{name}": empty for i in range(text["layers"]) for name in names}


def encode_images(
    images: Sequence[Image.Image], graphs: Graphs
) -> tuple[dict[str, Array], list[Grid]]:
    """Run the vision graph; returns its outputs without pads, and the grids of the images.

    Raises:
        ValueError: the export has no settings of images, or see `vision_inputs`.
    """
    about = graphs.about
    if not images:
        return {}, []
    if about["image"] is None:
        raise ValueError("the export has no settings of images; export a complete checkpoint")
    cut = [to_patches(image, about) for image in images]
    patches, grids = np.concatenate([each for each, _ in cut]), [grid for _, grid in cut]
    outputs = graphs.run("vision", vision_inputs(patches, grids, about["vision"]))
    tokens = len(patches) // about["vision"]["merge_size"] ** 2
    return {name: values[:tokens] for name, values in outputs.items()}, grids


def answer_ids(
    ids: Array, positions: Array, features: Mapping[str, Array], limit: int, graphs: Graphs
) -> Iterator[int]:
    """Generate the tokens of a greedy answer, without the one that ends it.

    Args:
        ids: of the prompt, int64 [S].
        positions: int64 [3, S].
        features: see `token_inputs`.
        limit: most tokens of the answer.
        graphs: of the export.
    """
    text = graphs.about["text"]
    inputs = token_inputs(ids, positions, features, graphs)
    fixed = text["prefill"] is not None and len(ids) <= text["prefill"]
    length = text["prefill"] if fixed else len(ids)
    mask = pad_rows(np.ones(len(ids), np.int64), length)[None]
    call = {"attention_mask": mask, "logits_index": np.array([[len(ids) - 1]])}
    cache = {} if fixed else empty_cache(text)
    graph = "prefill" if fixed else "text"
    outputs = graphs.run(graph, {**pad_tokens(inputs, length), **call, **cache})
    first = int(positions.max()) + 1
    for position in range(first, first + limit):
        token = int(outputs.pop("logits")[0, -1].argmax())
        if token in graphs.about["tokens"]["end"]:
            return
        yield token
        inputs = token_inputs(np.array([token]), np.full((3, 1), position), {}, graphs)
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
        call = {"attention_mask": mask, "logits_index": np.zeros((1, 1), np.int64)}
        cache = {name.replace("present", "past_key_values"): v for name, v in outputs.items()}
        outputs = graphs.run("text", {**inputs, **call, **cache})


def stream_text(tokens: Iterator[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Decode tokens as they come; a character appears when all its bytes have."""
    ids: list[int] = []
    shown = text = ""
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith(UNFINISHED):
            yield text[len(shown) :]
            shown = text
    yield text[len(shown) :]


def open_export(folder: Path, runtime: str) -> tuple[Graphs, Tokenizer]:
    """Open the graphs and the tokenizer of an export.

    Raises:
        OSError: a file is missing.
        ValueError: it is no export that this program runs.
    """
    if not (folder / "export.json").is_file():
        raise ValueError(f"{folder} has no export.json; give a folder of --format onnx")
    about = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    if (about["format"], about["version"]) != ("onnx", 1):
        raise ValueError(f"{folder} is {about['format']} {about['version']}; allowed: onnx 1")
    if "text" not in about["graphs"]:
        raise ValueError(f"{folder} has shards of the text part; export without --tp")
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} has no tokenizer.json; add it to the checkpoint, export again")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return Graphs(folder, about, RUNTIMES[runtime]), tokenizer


def main() -> None:
    """Print the answer as it is generated."""
    parser = argparse.ArgumentParser(description="Answer a question from an ONNX export.")
    parser.add_argument("folder", type=Path, help="folder of the export")
    parser.add_argument("question")
    parser.add_argument("--image", type=Path, action="append", default=[], help="may be repeated")
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--runtime", choices=list(RUNTIMES), default="onnxruntime")
    options = parser.parse_args()
    try:
        graphs, tokenizer = open_export(options.folder, options.runtime)
        features, grids = encode_images([read_image(path) for path in options.image], graphs)
        ids = prompt_ids(tokenizer, options.question, grids, graphs.about)
        positions = position_ids(ids, grids, graphs.about)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    for text in stream_text(
        answer_ids(ids, positions, features, options.max_new_tokens, graphs), tokenizer
    ):
        print(text, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
