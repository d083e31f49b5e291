"""Labels per patch of an image, and its patches as model inputs."""

from __future__ import annotations

import numpy as np
from tiny_configs import PREPROCESSORS

from vlpress.synthetic.canvas import INKS, ROLES, SHAPES, AnnotatedImage
from vlpress.synthetic.glyphs import GLYPHS

PATCH = 14

# Labels of a patch: the mark whose centre is in it. Position labels (a glyph's index in its string
# and its line, or the third of width and height of a shape) are included, because rotary positions
# alone teach them slowly.
MARKS = (*SHAPES, "bar")
RANKS, LINES = 7, 4
GROUPS = {
    "glyph": len(GLYPHS), "shape": len(MARKS), "colour": len(INKS), "size": 2,  # large, framed
    "rank": RANKS, "line": LINES, "blur": 1, "role": len(ROLES),
}  # fmt: skip
LABELS = sum(GROUPS.values())
PLACED = RANKS + LINES  # labels of positions
THINGS = LABELS - PLACED - GROUPS["blur"] - len(ROLES)  # labels of objects
FIRST = dict(zip(GROUPS, np.cumsum([0, *GROUPS.values()]).tolist(), strict=False))


def patch_labels(annotated: AnnotatedImage) -> np.ndarray:
    """Labels of every merged token, float32 `[tokens, 4 * LABELS]` of 0 and 1."""
    columns, rows = annotated.image.width // PATCH, annotated.image.height // PATCH
    grid = np.zeros((rows, columns, LABELS), dtype=np.float32)
    for mark in annotated.marks:
        row = min(rows - 1, max(0, int(mark.y // PATCH)))
        column = min(columns - 1, max(0, int(mark.x // PATCH)))
        here = grid[row, column]
        here[:] = 0
        if mark.glyph:
            here[FIRST["glyph"] + GLYPHS.index(mark.glyph)] = 1
            here[FIRST["line"] + min(mark.line, LINES) - 1] = 1
        if mark.rank:
            here[FIRST["rank"] + min(mark.rank, RANKS) - 1] = 1
        if mark.shape:
            here[FIRST["shape"] + MARKS.index(mark.shape)] = 1
            here[FIRST["rank"] + int(3 * mark.x / annotated.image.width)] = 1
            here[FIRST["line"] + int(3 * mark.y / annotated.image.height)] = 1
        if mark.blurred:
            here[FIRST["blur"]] = 1
        if mark.role:
            here[FIRST["role"] + ROLES.index(mark.role)] = 1
        if mark.colour in INKS:
            here[FIRST["colour"] + INKS.index(mark.colour)] = 1
        if mark.size in ("large", "framed"):
            here[FIRST["size"] + (mark.size == "framed")] = 1
    tiles = grid.reshape(rows // 2, 2, columns // 2, 2, LABELS).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(rows * columns // 4, 4 * LABELS)


def patches(annotated: AnnotatedImage, family: str) -> np.ndarray:
    """Patches in merge order, normalized as for a family, float32 `[patches, 1176]`."""
    mean, std = (np.float32(PREPROCESSORS[family][key]) for key in ("image_mean", "image_std"))
    pixels = (np.asarray(annotated.image, dtype=np.float32) / 255 - mean) / std
    rows, columns = pixels.shape[0] // (2 * PATCH), pixels.shape[1] // (2 * PATCH)
    tiles = pixels.reshape(rows, 2, PATCH, columns, 2, PATCH, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    flat = tiles.reshape(rows * columns * 4, 3, 1, PATCH * PATCH)
    return np.repeat(flat, 2, axis=2).reshape(rows * columns * 4, -1)
