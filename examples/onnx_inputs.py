"""What the graphs of an ONNX export take as inputs, computed from images and tokens with numpy.

docs/onnx.md, "Host program", states the rules. `onnx_chat.py` runs the graphs.

Letters in shapes: P patches, S tokens, D width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Array = NDArray[Any]
About = Mapping[str, Any]
"""export.json, or one of its objects."""
Grid = tuple[int, int, int]
"""Temporal patches, rows of patches, columns of patches."""
DEEP_MODES = ("I", "F")
"""First letters of Pillow's modes with more than 8 bits per channel."""


def read_image(path: Path) -> Image.Image:
    """Decode an image to upright RGB, transparent pixels over white.

    Raises:
        OSError: the file is missing or no image.
        ValueError: it has more than 8 bits per channel.
    """
    with Image.open(path) as opened:
        if opened.mode.startswith(DEEP_MODES):
            raise ValueError(f"{path} has more than 8 bits per channel; convert it to 8 bits")
        image = ImageOps.exif_transpose(opened)
    if "A" in image.getbands() or "transparency" in image.info:
        layers = image.convert("RGBA")
        white = Image.new("RGBA", layers.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layers)
    return image.convert("RGB")


def fit_size(height: int, width: int, about: About) -> tuple[int, int]:
    """Choose height and width after scaling: multiples of a merged token, within the area."""
    factor = about["vision"]["patch_size"] * about["vision"]["merge_size"]
    least, most = about["image"]["min_pixels"], about["image"]["max_pixels"]
    rows, columns = round(height / factor), round(width / factor)
    if rows * columns * factor**2 > most:
        shrink = math.sqrt(height * width / most)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif rows * columns * factor**2 < least:
        grow = math.sqrt(least / (height * width))
        rows, columns = math.ceil(height * grow / factor), math.ceil(width * grow / factor)
    return rows * factor, columns * factor


def to_patches(image: Image.Image, about: About) -> tuple[Array, Grid]:
    """Scale, normalize and cut an RGB image.

    Args:
        image: of any size.
        about: export.json.

    Returns:
        float32 [P, patch_dim] in merge order, and the grid.
    """
    height, width = fit_size(image.height, image.width, about)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    # Float64 first and then float32 is the rounding with which the models were trained.
    levels = (np.arange(256) * about["image"]["rescale_factor"]).astype(np.float32)[:, None]
    mean, std = (np.array(about["image"][key], np.float32) for key in ("mean", "std"))
    normalized = ((levels - mean) / std)[pixels, np.arange(3)]
    vision = about["vision"]
    m, p, d = vision["merge_size"], vision["patch_size"], vision["temporal_patch_size"]
    h, w = height // p, width // p
    frames = np.broadcast_to(normalized, (d, height, width, 3))
    cube = frames.reshape(1, d, h // m, m, p, w // m, m, p, 3)
    return cube.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(h * w, -1), (1, h, w)


def patch_coordinates(grids: Sequence[Grid], merge: int) -> Array:
    """Number frames, rows and columns of all patches, int64 [3, P] in merge order."""
    frames, first = [], 0
    for t, h, w in grids:
        coordinates = np.indices((t, h, w)).reshape(3, t, h // merge, merge, w // merge, merge)
        frames.append(coordinates.transpose(0, 1, 2, 4, 3, 5).reshape(3, -1))
        frames[-1][0] += first
        first += t
    return np.concatenate(frames, axis=1)


def window_segments(coordinates: Array, vision: About) -> Array:
    """Number the windows of all patches, int64 [P]; only equality matters."""
    frames, *inside = coordinates
    side = vision["window_size"] // (vision["patch_size"] * vision["merge_size"])
    tiles = [coordinate // vision["merge_size"] // side for coordinate in inside]
    return np.unique([frames, *tiles], axis=1, return_inverse=True)[1].reshape(-1)


def table_rows(height: int, width: int, vision: About) -> tuple[Array, Array]:
    """Interpolate the position table for a frame.

    Args:
        height: rows of patches.
        width: columns of patches.
        vision: `vision` of export.json.

    Returns:
        Rows of the table, int64 [4, P], and their weights, float32 [4, P].
    """
    side = vision["position_side"]
    neighbours = []
    for size, coordinate in zip(
        (height, width),
        patch_coordinates([(1, height, width)], vision["merge_size"])[1:],
        strict=True,
    ):
        exact = coordinate.astype(np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
        low = np.floor(exact)
        upper, index = exact - low, low.astype(np.int64)
        neighbours.append(((index, 1 - upper), (np.minimum(index + 1, side - 1), upper)))
    corners = [(row, column) for row in neighbours[0] for column in neighbours[1]]
    index = np.stack([row * side + column for (row, _), (column, _) in corners])
    return index, np.stack([by_row * by_column for (_, by_row), (_, by_column) in corners])


def vision_inputs(patches: Array, grids: Sequence[Grid], vision: About) -> dict[str, Array]:
    """Make all inputs of the vision graph.

    Args:
        patches: float32 [P, patch_dim] of all images.
        grids: of these.
        vision: `vision` of export.json.

    Raises:
        ValueError: there are more patches than the graph has.
    """
    fixed = vision["patches"] or len(patches)
    if fixed < len(patches):
        raise ValueError(
            f"the images have {len(patches)} patches; allowed: {fixed}, the number of the graph; "
            "scale them down, or export with a larger --patches"
        )
    coordinates = patch_coordinates(grids, vision["merge_size"])
    frequencies = np.array(vision["frequencies"], np.float32)
    angles = (coordinates[1:].T[:, :, None].astype(np.float32) * frequencies).reshape(
        len(patches), -1
    )
    inputs = {
        "pixel_values": pad_rows(patches, fixed),
        "cos": pad_rows(np.cos(angles), fixed, 1)[None],
        "sin": pad_rows(np.sin(angles), fixed)[None],
        "segments": pad_rows(coordinates[0], fixed, -1),
    }
    if vision["window_size"]:
        inputs["window_segments"] = pad_rows(window_segments(coordinates, vision), fixed, -1)
    if vision["position_side"]:
        tables = [table_rows(h, w, vision) for t, h, w in grids for _ in range(t)]
        for number, name in enumerate(("position_index", "position_weight")):
            rows = np.concatenate([table[number] for table in tables], axis=1)
            inputs[name] = pad_rows(rows.T, fixed).T
    return inputs


def pad_rows(values: Array, rows: int, value: float = 0) -> Array:
    """Add rows of one value to the end of an array."""
    widths = [(0, rows - len(values))] + [(0, 0)] * (values.ndim - 1)
    return np.pad(values, widths, constant_values=value)


def position_ids(ids: Array, grids: Sequence[Grid], about: About) -> Array:
    """Number tokens by time, height and width, int64 [3, S]."""
    merge, image = about["vision"]["merge_size"], about["tokens"]["image"]
    parts, start, token = [], 0, 0
    for t, h, w in grids:
        text = int(np.argmax(ids[token:] == image))
        parts.append(text_positions(text, start))
        inside = np.indices((t, h // merge, w // merge)).reshape(3, -1)
        parts.append(inside + start + text)
        start, token = int(parts[-1].max()) + 1, token + text + inside.shape[1]
    parts.append(text_positions(len(ids) - token, start))
    return np.concatenate(parts, axis=1)


def text_positions(count: int, start: int) -> Array:
    """Number tokens of a text, int64 [3, count]."""
    return np.broadcast_to(np.arange(count) + start, (3, count))


def text_angles(positions: Array, text: About) -> dict[str, Array]:
    """Compute cosine and sine of the decoder's angles, float32 [1, S, D/2] each.

    Args:
        positions: int64 [3, S].
        text: `text` of export.json.
    """
    frequencies = np.array(text["frequencies"], np.float32)
    angles = positions[text["axes"]].T.astype(np.float32) * frequencies
    scale = np.float32(text["rotary_scale"])
    return {"cos": np.cos(angles)[None] * scale, "sin": np.sin(angles)[None] * scale}
