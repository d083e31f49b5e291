"""The model's logits along the answers of samples, and the inputs that do not change in training.

Only the decoder is trained: the features of images are computed once per sample and stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ...calib.activation_store import ActivationStore
from ...calib.gradients import predicted_tokens
from ...model.features import Features
from ...model.processing.inputs import Prompt
from ...model.qwen_vl import QwenVL

FEATURES = "features"
"""Key of the store under which each sample's features are."""


class Answers:
    """Computes the logits of answers, in batches of samples.

    Args:
        model: the student, or a teacher.
        prompts: samples with their answers.
        store: holds the features of their images.

    Raises:
        ValueError: a sample has no token to predict.
    """

    def __init__(self, model: QwenVL, prompts: Sequence[Prompt], store: ActivationStore) -> None:
        self.model, self.store = model, store
        self.prompts = list(prompts)
        self.counts = [predicted_tokens(prompt, model.config) for prompt in prompts]
        if 0 in self.counts:
            raise ValueError(
                f"recover: sample {self.counts.index(0) + 1} has no token to predict; allowed: "
                "samples with answers, or with text after the last image"
            )

    @torch.no_grad()
    def encode_images(self, numbers: Iterable[int] | None = None) -> None:
        """Compute and store the features of samples, which `logits` needs; default all."""
        for number in range(len(self.prompts)) if numbers is None else numbers:
            prompt = self.prompts[number]
            encoded = self.model.encode(prompt.visuals) if prompt.visuals else []
            # Tokens that the model drops are chosen once; `embed` leaves their features out.
            (self.prompts[number],), _ = self.model.reduce([prompt], [encoded])
            named = {
                f"{index}.{name}": tensor
                for index, of_visual in enumerate(encoded)
                for name, tensor in of_visual.items()
            }
            self.store.put(FEATURES, number, named)
        self.store.seal(FEATURES)

    def logits(self, numbers: Sequence[int]) -> list[Tensor]:
        """Compute the logits that predict the answers of some samples; differentiable.

        Returns:
            float32 `[tokens, vocab]` for each.
        """
        prompts = [self.prompts[number] for number in numbers]
        features = [self._features(number) for number in numbers]
        last = [self.counts[number] + 1 for number in numbers]
        return [rows[:-1] for rows in self.model(prompts, features, last)]

    def tokens(self, number: int) -> Tensor:
        """Return the predicted tokens of a sample, int64 `[tokens]`."""
        return self.prompts[number].input_ids[-self.counts[number] :]

    def _features(self, number: int) -> list[Features]:
        features: list[Features] = [{} for _ in self.prompts[number].visuals]
        for name, tensor in self.store.get(FEATURES, number).items():
            index, _, key = name.partition(".")
            features[int(index)][key] = tensor
        return features
