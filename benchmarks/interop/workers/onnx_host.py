"""A host program for exports of the format onnx, after docs/onnx.md; numpy and onnxruntime alone.

It starts from token ids and patches; examples/ has programs that start from texts and images.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Array = NDArray[Any]
Grid = tuple[int, int, int]
"""Temporal patches, rows and columns of patches of an image or video."""
DEEPSTACK = "deepstack."
TEXT, PREFILL = "text", "prefill"


class Host:
    """A model in the folder of an export.

    Args:
        folder: with export.json.
        threads: of each graph.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self.folder, self.threads = folder, threads
        self.about: dict[str, Any] = json.loads((folder / "export.json").read_text("utf-8"))
        self._sessions: dict[str, Any] = {}

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a graph of export.json; returns its outputs by name."""
        about = self.about["graphs"][graph]
        if graph not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self.threads
            path = str(self.folder / about["file"])
            self._sessions[graph] = onnxruntime.InferenceSession(path, options)
        names = [output["name"] for output in about["outputs"]]
        values = self._sessions[graph].run(names, dict(inputs))
        return dict(zip(names, values, strict=True))

    def features(self, patches: Array, grids: Sequence[Grid]) -> dict[str, Array]:
        """Encode images and videos: rows for all their tokens, by the name of the feature."""
        outputs = self.run("vision", vision_inputs(self.about["vision"], patches, grids))
        tokens = len(patches) // self.about["vision"]["merge_size"] ** 2
        return {name: values[:tokens] for name, values in outputs.items()}

    def embeds(self, ids: Array) -> Array:
        """Look up the embeddings of token ids [S], float32 [1, S, hidden]."""
        about = self.about["embedding"]
        if about["file"].endswith(".bin"):
            table = np.memmap(self.folder / about["file"], "<f2", "r", shape=tuple(about["shape"]))
            return np.asarray(table[ids], np.float32)[None]
        return self.run("embedding", {"input_ids": ids[None]})["inputs_embeds"]

    def logits(
        self, ids: Array, positions: Array, features: Mapping[str, Array], *, pads: int = 0
    ) -> Array:
        """Compute the logits of all tokens of a prompt, float32 [S, vocab]; pads come after it."""
        inputs = self.text_inputs(ids, positions, features, pads)
        index = np.arange(len(ids), dtype=np.int64)[None]
        outputs = self.run(TEXT, {**inputs, "logits_index": index, **self._empty()})
        logits: Array = outputs["logits"][0]
        return logits

    def text_inputs(
        self, ids: Array, positions: Array, features: Mapping[str, Array], pads: int = 0
    ) -> dict[str, Array]:
        """Make the inputs of a prompt without a cache, and without `logits_index`.

        Args:
            ids: int64 [S].
            positions: int64 [3, S], see `position_ids`.
            features: of all its visuals; empty without any.
            pads: number of pads after the prompt.
        """
        about, tokens = self.about["text"], self.about["tokens"]
        embeds, added = self.embeds(ids), {}
        for index in range(self.about["vision"]["deepstack"]):
            added[f"{DEEPSTACK}{index}"] = np.zeros_like(embeds)
        if features:
            visual = (ids == tokens["image"]) | (ids == tokens["video"])
            for name, values in features.items():
                added.get(name, embeds)[0, visual] = values
        cos, sin = text_angles(about, positions)
        inputs = {"inputs_embeds": embeds, "cos": cos, "sin": sin, **added}
        padded = {name: np.pad(v, ((0, 0), (0, pads), (0, 0))) for name, v in inputs.items()}
        padded["cos"][:, len(ids) :] = 1
        mask = np.pad(np.ones((1, len(ids)), np.int64), ((0, 0), (0, pads)))
        return {**padded, "attention_mask": mask}

    def answer(
        self,
        ids: Array,
        positions: Array,
        features: Mapping[str, Array],
        limit: int,
        *,
        end: Collection[int] | None = None,
        prefill: bool = False,
    ) -> list[int]:
        """Answer a prompt greedily.

        Args:
            ids: see `text_inputs`.
            positions: see `text_inputs`.
            features: see `text_inputs`.
            limit: most tokens of the answer.
            end: tokens that end an answer; None: those of the model.
            prefill: whether the graph for prompts of fixed length computes the first token.

        Returns:
            The tokens without the one that ends the answer.
        """
        graph = PREFILL if prefill else TEXT
        pads = self.about["text"]["prefill"] - len(ids) if prefill else 0
        inputs = self.text_inputs(ids, positions, features, pads)
        inputs["logits_index"] = np.array([[len(ids) - 1]])
        outputs = self.run(graph, inputs if prefill else {**inputs, **self._empty()})
        mask, end, answer = inputs["attention_mask"], end or self.about["tokens"]["end"], []
        following = int(positions.max()) + 1
        for position in range(following, following + limit):
            token = int(outputs.pop("logits")[0, -1].argmax())
            if token in end:
                break
            answer.append(token)
            inputs = self.text_inputs(np.array([token]), np.full((3, 1), position), {})
            mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
            inputs |= {"attention_mask": mask, "logits_index": np.zeros((1, 1), np.int64)}
            past = {name.replace("present", "past_key_values"): v for name, v in outputs.items()}
            outputs = self.run(TEXT, {**inputs, **past})
        return answer

    def _empty(self) -> dict[str, Array]:
        """An empty cache."""
        about = self.about["text"]
        empty = np.zeros((1, about["kv_heads"], 0, about["head_dim"]), np.float32)
        return {
            f"past_key_values.{layer}.{part}": empty
            for layer in range(about["layers"])
            for part in ("key", "value")
        }


def vision_inputs(
    about: Mapping[str, Any], patches: Array, grids: Sequence[Grid]
) -> dict[str, Array]:
    """Make the inputs of the vision graph.

    Args:
        about: `vision` of export.json.
        patches: float32 [P, patch_dim] of all images and videos.
        grids: of these.

    Raises:
        ValueError: there are more patches than the graph has.
    """
    pads = (about["patches"] or len(patches)) - len(patches)
    if pads < 0:
        raise ValueError(
            f"{len(patches)} patches; allowed: {about['patches']}, the number of the graph; scale "
            "the image to fewer pixels, or export with a larger --patches"
        )
    # A temporal patch is a frame.
    frames = [patch_places(h, w, about["merge_size"]) for t, h, w in grids for _ in range(t)]
    places = np.concatenate(frames, axis=1)
    frequencies = np.array(about["frequencies"], np.float32)
    angles = places.T[:, :, None].astype(np.float32) * frequencies
    angles = angles.reshape(len(patches), -1)
    segments = np.repeat(np.arange(len(frames)), [frame.shape[1] for frame in frames])
    inputs = {
        "pixel_values": np.pad(patches, ((0, pads), (0, 0))),
        "cos": np.pad(np.cos(angles), ((0, pads), (0, 0)), constant_values=1)[None],
        "sin": np.pad(np.sin(angles), ((0, pads), (0, 0)))[None],
        "segments": np.pad(segments, (0, pads), constant_values=-1),
    }
    if about["window_size"]:
        windows = window_segments(about, places, segments)
        inputs["window_segments"] = np.pad(windows, (0, pads), constant_values=-1)
    if about["position_side"]:
        tables = [table_rows(about, h, w) for t, h, w in grids for _ in range(t)]
        index, weight = (np.concatenate(each, axis=1) for each in zip(*tables, strict=True))
        inputs["position_index"] = np.pad(index, ((0, 0), (0, pads)))
        inputs["position_weight"] = np.pad(weight, ((0, 0), (0, pads)))
    return inputs


def patch_places(height: int, width: int, merge: int) -> Array:
    """Rows and columns of the patches of a frame in merge order, int64 [2, height * width]."""
    places = np.indices((height, width))
    places = places.reshape(2, height // merge, merge, width // merge, merge)
    return places.transpose(0, 1, 3, 2, 4).reshape(2, -1)


def window_segments(about: Mapping[str, Any], places: Array, segments: Array) -> Array:
    """Number the windows of all frames, int64 [P]; only equality matters.

    Args:
        about: `vision` of export.json.
        places: rows and columns of the patches, [2, P].
        segments: frames of the patches, [P].
    """
    side = about["window_size"] // about["patch_size"]  # patches, a multiple of the merge size
    tiles = places // (side // about["merge_size"] * about["merge_size"])
    keys = np.stack([segments, *tiles])
    return np.unique(keys, axis=1, return_inverse=True)[1].reshape(-1)


def table_rows(about: Mapping[str, Any], height: int, width: int) -> tuple[Array, Array]:
    """Rows of the position table and their weights for a frame, [4, height * width] each."""
    side, (row, column) = about["position_side"], patch_places(height, width, about["merge_size"])
    low, high, share = zip(*(neighbours(n, side) for n in (height, width)), strict=True)
    index, weight = [], []
    for rows, row_weight in ((low[0], 1 - share[0]), (high[0], share[0])):
        for columns, column_weight in ((low[1], 1 - share[1]), (high[1], share[1])):
            index.append(rows[row] * side + columns[column])
            weight.append(row_weight[row] * column_weight[column])
    return np.stack(index), np.stack(weight)


def neighbours(size: int, side: int) -> tuple[Array, Array, Array]:
    """The two places of the table next to each of `size`, and the weight of the second."""
    place = np.arange(size, dtype=np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
    low = np.floor(place)
    index = low.astype(np.int64)
    return index, np.minimum(index + 1, side - 1), place - low


def position_ids(
    about: Mapping[str, Any],
    ids: Array,
    grids: Sequence[Grid],
    seconds: Sequence[float] = (),
) -> Array:
    """Number the tokens of a prompt for M-RoPE, int64 [3, S].

    Args:
        about: export.json.
        ids: int64 [S].
        grids: of the images and videos in the prompt.
        seconds: of each, seconds per temporal patch; empty without videos.
    """
    vision, tokens = about["vision"], about["tokens"]
    seconds = seconds or [0.0] * len(grids)
    visuals = list(zip(grids, seconds, strict=True))
    if vision["separate_frames"]:
        visuals = [((1, h, w), 0.0) for t, h, w in grids for _ in range(t)]
    parts, start, token = [], 0, 0
    for (t, h, w), duration in visuals:
        while ids[token] not in (tokens["image"], tokens["video"]):
            parts.append(np.full((3, 1), start))
            start, token = start + 1, token + 1
        shape = t, h // vision["merge_size"], w // vision["merge_size"]
        grid = np.indices(shape).reshape(3, -1)
        if vision["tokens_per_second"] and ids[token] == tokens["video"]:
            # float32 and this order of products, like the models' own code.
            time = grid[0].astype(np.float32) * np.float32(duration)
            grid[0] = (time * np.float32(vision["tokens_per_second"])).astype(np.int64)
        parts.append(grid + start)
        start, token = int(parts[-1].max()) + 1, token + grid.shape[1]
    parts.append(np.broadcast_to(np.arange(len(ids) - token) + start, (3, len(ids) - token)))
    return np.concatenate(parts, axis=1)


def text_angles(about: Mapping[str, Any], positions: Array) -> tuple[Array, Array]:
    """Cosine and sine of the decoder's angles, float32 [1, S, D/2].

    Args:
        about: `text` of export.json.
        positions: int64 [3, S].
    """
    frequencies = np.array(about["frequencies"], np.float32)
    angles = positions[about["axes"]].T.astype(np.float32) * frequencies
    scale = np.float32(about["rotary_scale"])
    return (np.cos(angles) * scale)[None], (np.sin(angles) * scale)[None]
