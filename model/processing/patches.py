"""Patches of an image or video, as the vision tower reads them.

The patches are ordered so that the four patches of a merged token are adjacent (Qwen2-VL, arXiv
2409.12191).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..config import VisionConfig
from .images import Pixels
from .pixel_settings import PixelSettings


def to_patches(frames: Sequence[Pixels], vision: VisionConfig, settings: PixelSettings) -> Tensor:
    """Cut frames into normalized patches in merge order.

    Args:
        frames: uint8 `[height, width, 3]` each, all of one size, sides multiples of patch x merge
            pixels; their number a multiple of `temporal_patch_size`.
        vision: gives patch and merge sizes.
        settings: gives mean, standard deviation and the factor to [0, 1].

    Returns:
        float32 `[t * h * w, 3 * temporal_patch_size * patch_size**2]`.
    """
    patch, merge, depth = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    height, width, channels = frames[0].shape
    rows, columns = height // (patch * merge), width // (patch * merge)
    # Axes: time, frame, row, merge row, y, column, merge column, x, channel.
    cube = np.stack(frames).reshape(
        len(frames) // depth, depth, rows, merge, patch, columns, merge, patch, channels
    )
    cube = cube.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, channels, depth * patch * patch)
    # A table of the 256 values per channel is exact and fast. float64 first and then float32 is the
    # order of operations with which the models were trained.
    unit = (np.arange(256, dtype=np.float64) * settings.rescale_factor).astype(np.float32)
    out = np.empty(cube.shape, dtype=np.float32)
    for channel in range(channels):
        mean, std = np.float32(settings.mean[channel]), np.float32(settings.std[channel])
        out[:, channel] = ((unit - mean) / std)[cube[:, channel]]
    return torch.from_numpy(out.reshape(cube.shape[0], -1))
