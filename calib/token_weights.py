"""Weights of image and text tokens in sums over tokens, such as Hessians.

An image has about ten times as many tokens as the question about it, and each of them matters
less. With uniform weights the images dominate the sums. These functions compute the weight of an
image or video token in the Hessians of the decoder and the head. Questions, answers and the tokens
of the chat template are text. In the vision tower all tokens are image tokens with the same weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model.config import ModelConfig
from ..model.families import family_of
from ..model.processing.inputs import Prompt
from ..model.qwen_vl import QwenVL
from .fixed_weights import KINDS, FixedWeights
from .gradients import loss_gradients, predicted_tokens, token_sensitivities, visual_tokens


@dataclass(frozen=True)
class ModalityTokenWeights:
    """A weight per block and modality; see `block_runner.TokenWeightFn`."""

    image: Mapping[str, float]
    """Weight of an image or video token, by module path of the decoder block or head. In other
    blocks all tokens have the same weight."""
    text: float
    """Weight of every other token."""
    config: ModelConfig

    def __call__(self, block: str, prompt: Prompt) -> Tensor | None:
        """Return the weight of every token, float32 `[T]`; None if all are equal."""
        image = self.image.get(block, self.text)
        if image == self.text:
            return None
        return torch.where(visual_tokens(prompt, self.config), image, self.text)

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values: one weight of image tokens, or one per block if they differ."""
        is_constant = len(set(self.image.values())) == 1
        image = next(iter(self.image.values())) if is_constant else dict(self.image)
        return {"image": image, "text": self.text}


@dataclass(frozen=True)
class PerTokenWeights:
    """A weight per block and token; see `block_runner.TokenWeightFn`."""

    weights: Mapping[Prompt, Mapping[str, Tensor]]
    """float32 `[T]` by sample and module path of the decoder block or head."""
    config: ModelConfig

    def __call__(self, block: str, prompt: Prompt) -> Tensor | None:
        """Return the weight of every token, float32 `[T]`; None if all are equal."""
        return self.weights[prompt].get(block)

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values: the mean weights of image and text tokens in each block."""
        mask = torch.cat([visual_tokens(prompt, self.config) for prompt in self.weights])
        means: dict[str, dict[str, float]] = {"image": {}, "text": {}}
        for block in next(iter(self.weights.values())):
            weights = torch.cat([blocks[block] for blocks in self.weights.values()])
            for modality, selected in (("image", weights[mask]), ("text", weights[~mask])):
                if len(selected):
                    means[modality][block] = float(selected.mean())
        return means


def find_token_weights(
    setting: str | FixedWeights, model: QwenVL, prompts: Sequence[Prompt]
) -> ModalityTokenWeights | PerTokenWeights:
    """Compute the token weights of a recipe for a model and its calibration samples.

    Args:
        setting: "uniform" (all equal), "balanced" (`balanced_image_weight`), "gradient"
            (`gradient_image_weights`), "token-gradient" (`token_sensitivities`), or numbers. With
            the gradient kinds, the head uses the weights of the last block.
        model: float model, nothing quantized.
        prompts: samples with their answers.

    Raises:
        ValueError: `setting` is none of these, or no sample has a usable gradient.
    """
    family, config = family_of(model.config), model.config
    heads = family.head.blocks(config)
    blocks = [*family.decoder.blocks(config), *heads]
    if isinstance(setting, FixedWeights):
        return ModalityTokenWeights(dict.fromkeys(blocks, setting.image), setting.text, config)
    if setting == "uniform":
        return ModalityTokenWeights(dict.fromkeys(blocks, 1.0), 1.0, config)
    if setting == "balanced":
        weight = balanced_image_weight(prompts, config)
        return ModalityTokenWeights(dict.fromkeys(blocks, weight), 1.0, config)
    if setting == "gradient":
        by_block = gradient_image_weights(model, prompts)
        last = list(by_block.values())[-1]
        return ModalityTokenWeights(by_block | dict.fromkeys(heads, last), 1.0, config)
    if setting == "token-gradient":
        weights = {}
        for prompt, tensors in token_sensitivities(model, prompts).items():
            weights[prompt] = dict(zip(blocks, [*tensors, *tensors[-1:]], strict=False))
        return PerTokenWeights(weights, config)
    raise ValueError(f"token_weights is {setting!r}; allowed are {', '.join(KINDS)}")


def balanced_image_weight(prompts: Sequence[Prompt], config: ModelConfig) -> float:
    """Return the weight with which all image tokens together count as much as all text tokens.

    It is 1 if there are no image tokens.
    """
    masks = [visual_tokens(prompt, config) for prompt in prompts]
    images = sum(int(mask.sum()) for mask in masks)
    texts = sum(len(mask) for mask in masks) - images
    return texts / images if images else 1.0


def gradient_image_weights(model: QwenVL, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Compute the loss sensitivity of image tokens relative to text tokens per decoder block.

    After Li et al., "MBQ: Modality-Balanced Quantization for Large Vision-Language Models" (CVPR
    2025, arXiv 2412.19509, section 4): the sensitivity of a modality is the mean gradient of the
    loss (see `gradients`) at its tokens in the block's output. The paper weights absolute errors
    by absolute gradients. Hessians sum squared errors, so squared gradients are used here.

    Args:
        model: float model; left unchanged.
        prompts: samples with their answers; those without images are ignored.

    Returns:
        Weight of an image token by module path of the decoder block. Image tokens have no gradient
        at the output of the last block, because only later tokens predict; it gets the weight of
        the previous block.

    Raises:
        ValueError: no prompt has an image followed by text.
    """
    blocks = family_of(model.config).decoder.blocks(model.config)
    sums = torch.zeros(len(blocks), 2, dtype=torch.float64)
    counts = torch.zeros(2, dtype=torch.float64)
    for prompt in prompts:
        visual = visual_tokens(prompt, model.config)
        if not bool(visual.any()) or not predicted_tokens(prompt, model.config):
            continue
        gradients = loss_gradients(model, prompt)
        for side, mask in enumerate((visual, ~visual)):
            counts[side] += int(mask.sum())
            for block, gradient in enumerate(gradients):
                energy = gradient[mask.to(gradient.device)].double().square().mean(dim=-1).sum()
                sums[block, side] += float(energy)
    if not bool(counts.all()):
        raise ValueError(
            "no calibration sample has an image followed by text, which gradient token weights "
            "need; add such samples or use uniform weights"
        )
    means = sums / counts
    ratios = (means[:, 0] / means[:, 1]).tolist()
    if len(ratios) > 1:
        ratios[-1] = ratios[-2]
    return dict(zip(blocks, ratios, strict=True))
