"""How much an image token counts beside a text token when errors are summed over tokens.

A picture brings ten times more tokens than the question about it, and each of them matters less.
Uniform sums let the pictures decide; these functions give the weight that an image or video token
gets in the Hessians of the decoder, a text token counting 1.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.config import ModelConfig
from ..model.families import family_of
from ..model.inputs import Prompt
from ..model.qwen_vl import QwenVL


def visual_tokens(prompt: Prompt, config: ModelConfig) -> Tensor:
    """Which tokens stand for pictures and videos, bool ``[tokens]``."""
    ids = prompt.input_ids
    return (ids == config.image_token_id) | (ids == config.video_token_id)


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
    2025, arXiv 2412.19509, section 4): the loss is next-token prediction of the text behind the
    last picture, the sensitivity of a modality the mean gradient of its tokens at the block's
    output. The paper weighs absolute errors by absolute gradients; Hessians sum squares, so here
    squares weigh squares.

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
        if not bool(visual.any()) or bool(visual[-2]):
            continue
        gradients = _gradients(model, prompt, int(visual.nonzero().max()))
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


def _gradients(model: QwenVL, prompt: Prompt, last_visual: int) -> list[Tensor]:
    """Gradient of the loss at every decoder block's output, each ``[tokens, hidden]``."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        with torch.no_grad():
            batch = model.embed([prompt])
        with torch.enable_grad():
            state = model.model.prepare(batch.embeds.detach().requires_grad_(), batch.position_ids)
            hidden, outputs = state["hidden"], []
            for layer in model.model.layers:
                hidden = layer(hidden, state["cos"], state["sin"], state.get("mask"))
                outputs.append(hidden)
            rows = model.model.finish(hidden)[0, last_visual + 1 : -1]
            targets = prompt.input_ids[last_visual + 2 :].to(rows.device)
            loss = F.cross_entropy(model.logits(rows), targets, reduction="sum")
            return [gradient[0] for gradient in torch.autograd.grad(loss, outputs)]
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
