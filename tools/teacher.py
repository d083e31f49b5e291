"""A trained Qwen2.5-VL whose image features the vision tower of another family learns."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_configs import PREPROCESSORS
from tiny_data import PackedBatch
from tiny_student import Student
from tokenizers import Tokenizer
from torch import Tensor

from vlpress.model.features import HIDDEN

FAMILY = "qwen2_5_vl"


def pixel_map(source: str, target: str) -> tuple[Tensor, Tensor]:
    """Factor and summand, `[3]` each, from pixels that `source` normalized to those of `target`."""
    mean, std = (
        [torch.tensor(PREPROCESSORS[family][key]).double() for family in (source, target)]
        for key in ("image_mean", "image_std")
    )
    return std[0] / std[1], (mean[0] - mean[1]) / std[1]


class Teacher:
    """Features of the trained model for batches of another family."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, family: str) -> None:
        self.student = Student(tokenizer, FAMILY)
        self.student.load_checkpoint(folder)
        self.scale, self.shift = (part.float() for part in pixel_map(family, FAMILY))

    @torch.no_grad()
    def features(self, batch: PackedBatch) -> Tensor:
        """Features of a batch, `[tokens, H]`."""
        channels = batch.patches.view(len(batch.patches), len(self.scale), -1)
        patches = channels * self.scale[:, None] + self.shift[:, None]
        out: Tensor = self.student.qwen.visual(patches.flatten(1), batch.grid)[HIDDEN]
        return out
