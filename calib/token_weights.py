"""How much an image token counts beside a text token when errors are summed over tokens.

A picture brings ten times more tokens than the question about it, and each of them matters less.
Uniform sums let the pictures decide; these functions give the weight that an image or video token
gets in the Hessians of the decoder and the head. Questions, answers and the tokens of the chat
template are text. The vision tower reads pictures only, and there all tokens count alike.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..model.config import ModelConfig
from ..model.families import family_of
from ..model.processing.inputs import Prompt
from ..model.qwen_vl import QwenVL
from .gradients import loss_gradients, predicted_tokens, token_sensitivities, visual_tokens

KINDS = ("uniform", "balanced", "gradient", "token-gradient")
GRADIENTS = KINDS[2:]
"""Those that run the float decoder forth and back before anything is quantized."""


@dataclass(frozen=True)
class FixedWeights:
    """Weights that a recipe gives in numbers; only their ratio matters.

    A kind of token with weight 0 is left out, of the ranges that static scales rest on too.
    """

    image: float = 1.0
    """Of an image or video token."""
    text: float = 1.0
    """Of every other token."""

    def __post_init__(self) -> None:
        for name, value in self.to_dict().items():
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                raise ValueError(
                    f"token_weights.{name} is {value!r}; it must be a number, at least 0"
                )
        if not (self.image or self.text):
            raise ValueError("token_weights are all 0; give image or text a weight above 0")

    def to_dict(self) -> dict[str, float]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class TokenWeights:
    """Token weights by block and sample, see `block_runner.TokenWeightFn`."""

    image: Mapping[str, float]
    """Weight of an image or video token, by module path of decoder block or head; tokens of all
    other blocks count alike."""
    text: float
    """Weight of every other token."""
    config: ModelConfig

    def __call__(self, block: str, prompt: Prompt) -> Tensor | None:
        """Weight of every token, float32 ``[T]``; None = all alike."""
        image = self.image.get(block, self.text)
        if image == self.text:
            return None
        return torch.where(visual_tokens(prompt, self.config), image, self.text)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: one weight of image tokens, or one for each block if they differ."""
        alike = len(set(self.image.values())) == 1
        image = next(iter(self.image.values())) if alike else dict(self.image)
        return {"image": image, "text": self.text}


@dataclass(frozen=True)
class UniformTokenWeights:
    """As `TokenWeights`, with a weight for each single token."""

    weights: Mapping[Prompt, Mapping[str, Tensor]]
    """float32 ``[T]`` by sample and module path of decoder block or head."""
    config: ModelConfig

    def __call__(self, block: str, prompt: Prompt) -> Tensor | None:
        """Weight of every token, float32 ``[T]``; None = all alike."""
        return self.weights[prompt].get(block)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the mean weight of image and of text tokens in each block."""
        mask = torch.cat([visual_tokens(prompt, self.config) for prompt in self.weights])
        found: dict[str, dict[str, float]] = {"image": {}, "text": {}}
        for block in next(iter(self.weights.values())):
            weights = torch.cat([blocks[block] for blocks in self.weights.values()])
            for kind, chosen in (("image", weights[mask]), ("text", weights[~mask])):
                if len(chosen):
                    found[kind][block] = float(chosen.mean())
        return found


def find_token_weights(
    wanted: str | FixedWeights, model: QwenVL, prompts: Sequence[Prompt]
) -> TokenWeights | UniformTokenWeights:
    """What a recipe's token weights are for a model and its calibration samples.

    Args:
        wanted: "uniform" (all alike), "balanced" (`balanced_image_weight`), "gradient"
            (`gradient_image_weights`), "token-gradient" (`token_sensitivities`; with both the head
            takes what the last block has) or numbers.
        model: in float, nothing quantized.
        prompts: with their answers.

    Raises:
        ValueError: `wanted` is none of these, or a gradient finds no sample to use.
    """
    family, config = family_of(model.config), model.config
    heads = family.stage("head").blocks(config)
    blocks = [*family.stage("decoder").blocks(config), *heads]
    if isinstance(wanted, FixedWeights):
        return TokenWeights(dict.fromkeys(blocks, wanted.image), wanted.text, config)
    if wanted == "uniform":
        return TokenWeights(dict.fromkeys(blocks, 1.0), 1.0, config)
    if wanted == "balanced":
        weight = balanced_image_weight(prompts, config)
        return TokenWeights(dict.fromkeys(blocks, weight), 1.0, config)
    if wanted == "gradient":
        found = gradient_image_weights(model, prompts)
        last = list(found.values())[-1]
        return TokenWeights(found | dict.fromkeys(heads, last), 1.0, config)
    if wanted == "token-gradient":
        weights = {}
        for prompt, tensors in token_sensitivities(model, prompts).items():
            weights[prompt] = dict(zip(blocks, [*tensors, *tensors[-1:]], strict=False))
        return UniformTokenWeights(weights, config)
    raise ValueError(f"token_weights is {wanted!r}; allowed are {', '.join(KINDS)}")


def balanced_image_weight(prompts: Sequence[Prompt], config: ModelConfig) -> float:
    """The weight with which all image tokens together count as much as all text tokens.

    1 if there are no image tokens.
    """
    masks = [visual_tokens(prompt, config) for prompt in prompts]
    images = sum(int(mask.sum()) for mask in masks)
    texts = sum(len(mask) for mask in masks) - images
    return texts / images if images else 1.0


def gradient_image_weights(model: QwenVL, prompts: Sequence[Prompt]) -> dict[str, float]:
    """For every decoder block, how much more or less the loss minds errors at image tokens.

    After Li et al., "MBQ: Modality-Balanced Quantization for Large Vision-Language Models" (CVPR
    2025, arXiv 2412.19509, section 4): the sensitivity of a modality is the mean gradient of the
    loss (see `gradients.py`) at its tokens in the block's output. The paper weighs absolute errors
    by absolute gradients; Hessians sum squares, so here squares weigh squares.

    Args:
        model: in float; left unchanged.
        prompts: with their answers; prompts without pictures are passed over.

    Returns:
        Weight of an image token for each decoder block's module path. The last block has no say
        of its own about image tokens (nothing behind it reads them) and takes that of the one
        before.

    Raises:
        ValueError: no prompt has both pictures and text behind them.
    """
    blocks = family_of(model.config).stage("decoder").blocks(model.config)
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
            "no calibration sample has a picture with text behind it, which gradient token "
            "weights need; add such samples or use uniform weights"
        )
    means = sums / counts
    ratios = (means[:, 0] / means[:, 1]).tolist()
    if len(ratios) > 1:
        ratios[-1] = ratios[-2]
    return dict(zip(blocks, ratios, strict=True))
