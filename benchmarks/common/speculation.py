"""Pairs of a model and its drafts, on the built-in models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

import vlpress
from vlpress.calib.samples.draw import load_samples
from vlpress.model.features import Features
from vlpress.model.mtp import MultiTokenPredictor
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.model.speculation.drafts import Drafter
from vlpress.model.speculation.model_drafter import ModelDrafter
from vlpress.model.speculation.mtp_drafter import MtpDrafter
from vlpress.model.speculation.ngram_drafter import NgramDrafter
from vlpress.quant.checkpoint.draft_module import open_predictor
from vlpress.quant.checkpoint.loading import open_model, resolve_folder

from .divergence import SEEDS

DRAFT_TOKENS = 4
FREE = 32
"""Tokens where answers do not end: text after the end of the turn has many near choices."""


@dataclass(frozen=True)
class Target:
    """A model that checks drafts."""

    model: str
    recipe: str | None = None
    dtype: str = "bf16"
    free: bool = False
    """Whether answers continue after the end of the turn."""

    @property
    def name(self) -> str:
        """Name of a row."""
        recipe = f" {self.recipe}" if self.recipe else ""
        return f"{self.model}{recipe}, {self.dtype}" + (f", {FREE} tokens" if self.free else "")


@dataclass(frozen=True)
class Pair:
    """A target and its drafts: a recipe of the same model, `ngram` or `mtp`."""

    target: Target
    draft: str

    @property
    def name(self) -> str:
        """Name of a row."""
        return f"{self.target.name}; {self.draft}"


PAIRS = (
    *(Pair(Target("tiny"), draft) for draft in ("w4a16", "ngram")),
    *(Pair(Target("tiny", "w4a16"), draft) for draft in ("w3a16", "ngram")),
    Pair(Target("tiny", dtype="fp32"), "w4a16"),
    Pair(Target("tiny3.5"), "mtp"),
    Pair(Target("tiny", free=True), "w4a16"),
    Pair(Target("tiny3.5", "w4a16"), "mtp"),
    Pair(Target("tiny", dtype="fp32", free=True), "w4a16"),
    Pair(Target("tiny", dtype="fp32"), "ngram"),
    *(Pair(Target("tiny3.5"), draft) for draft in ("w4a16", "ngram")),
    Pair(Target("tiny3.5", "w4a16"), "ngram"),
    *(Pair(Target("tiny3.5", dtype="fp32"), draft) for draft in ("mtp", "w4a16")),
)


class Lab:
    """The models and drawings, opened once."""

    def __init__(self, work: Path, drawings: int) -> None:
        self._work, self._drawings = work, drawings
        self.open = cache(self._open)
        self.prompts = cache(self._prompts)
        self.features = cache(self._features)
        self.predictor = cache(self._predictor)
        self.processor = cache(self._processor)

    def folder(self, model: str, recipe: str | None) -> Path:
        """Return the checkpoint of a model, quantized unless the recipe is None."""
        if recipe is None:
            return resolve_folder(model)
        out = self._work / f"{model}-{recipe}"
        vlpress.quantize(model, out, recipe=recipe, calib_samples=64)
        return out

    def _open(self, model: str, recipe: str | None, dtype: str) -> QwenVL:
        return open_model(self.folder(model, recipe), device="cpu", dtype=dtype)

    def _processor(self, model: str) -> Processor:
        return Processor.from_folder(resolve_folder(model))

    def _prompts(self, model: str) -> list[Prompt]:
        processor = self.processor(model)
        samples = load_samples(None, n=self._drawings, seed=SEEDS["held_out"])
        return [processor.encode(sample.messages) for sample in samples]

    def _features(self, model: str, dtype: str, index: int) -> list[Features]:
        # The recipes leave the tower in float: all forms of a model have the same features.
        with torch.inference_mode():
            return self.open(model, None, dtype).encode(self.prompts(model)[index].visuals)

    def _predictor(self, target: Target) -> MultiTokenPredictor:
        folder = self.folder(target.model, target.recipe)
        return open_predictor(folder, self.open(target.model, target.recipe, target.dtype))

    def drafter(self, pair: Pair, index: int) -> Drafter:
        """Make the drafter of one drawing."""
        target, prompt = pair.target, self.prompts(pair.target.model)[index]
        model = self.open(target.model, target.recipe, target.dtype)
        config = model.config
        if pair.draft == "ngram":
            placeholders = {config.image_token_id, config.video_token_id}
            return NgramDrafter(prompt.input_ids.tolist(), placeholders)
        if pair.draft == "mtp":
            return MtpDrafter(model, self.predictor(target))
        draft = self.open(target.model, pair.draft, target.dtype)
        features = self.features(target.model, target.dtype, index)
        return ModelDrafter(draft, prompt, config.text.vocab_size, features)
