"""Sensitivity of the loss to errors per token: one backward pass through the float decoder.

The loss is the cross-entropy of the answer tokens: the prompt is written by the user and never
predicted. Of a sample without an answer (plain text), all tokens after the last image are
predicted.

This is the only calibration step that runs the whole decoder at once. It keeps the activations of
one sample for the backward pass, and computes no gradients of weights.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.config import ModelConfig
from ..model.processing.inputs import Prompt, visual_mask
from ..model.qwen_vl import QwenVL


def predicted_tokens(prompt: Prompt, config: ModelConfig) -> int:
    """Count the tokens at the end of a prompt that the loss covers; 0 if there are none."""
    if prompt.answer_tokens:
        return prompt.answer_tokens
    visual = visual_tokens(prompt, config).nonzero()
    # The token after the last image token closes the image and is always the same.
    first = int(visual.max()) + 2 if len(visual) else 1
    return max(len(prompt) - first, 0)


def visual_tokens(prompt: Prompt, config: ModelConfig) -> Tensor:
    """Return a mask of the image and video tokens, bool `[tokens]`."""
    return visual_mask(prompt.input_ids, config)


def loss_gradients(model: QwenVL, prompt: Prompt) -> list[Tensor]:
    """Return the gradient of the loss at every decoder block's output, each `[tokens, hidden]`.

    Args:
        model: float model; left unchanged.
        prompt: sample with at least one token to predict.
    """
    count = predicted_tokens(prompt, model.config)
    trainable = [p for p in model.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        with torch.no_grad():
            batch = model.embed([prompt])
        with torch.enable_grad():
            embeds = batch.embeds.detach().requires_grad_()
            state = model.model.prepare(embeds, batch.position_ids, added=batch.added)
            states = list(model.model.layer_states(state))
            outputs = [state["hidden"] for state in states]
            rows = model.model.finish(states[-1])[0, -count - 1 : -1]
            targets = prompt.input_ids[-count:].to(rows.device)
            loss = F.cross_entropy(model.logits(rows), targets, reduction="sum")
            return [gradient[0] for gradient in torch.autograd.grad(loss, outputs)]
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def token_sensitivities(
    model: QwenVL, prompts: Sequence[Prompt], floor: float = 0.1
) -> dict[Prompt, list[Tensor]]:
    """Return a weight for every token in every decoder block: the norm of its gradient.

    MBQ (Li et al., arXiv 2412.19509, section 4) weights a modality by its mean gradient. Here
    every token has its own weight, because most of the variation is inside a modality: answer
    tokens, and the few image regions that the answer depends on. At the output of the last block,
    only tokens that predict have a gradient, although its keys and values come from all tokens;
    that block uses the weights of the previous one.

    Args:
        model: float model; left unchanged.
        prompts: samples with their answers.
        floor: 0 to 1, share of the mean weight that every token gets, so that no token is ignored.

    Returns:
        For each prompt one float32 tensor `[tokens]` per decoder block. In each block the weights
        of all tokens of all prompts have mean 1.

    Raises:
        ValueError: no prompt has a token to predict.
    """
    norms = {
        prompt: [gradient.float().norm(dim=-1).cpu() for gradient in loss_gradients(model, prompt)]
        for prompt in prompts
        if predicted_tokens(prompt, model.config)
    }
    means = [float(torch.cat(block).mean()) for block in zip(*norms.values(), strict=True)]
    if not means or not all(means):
        raise ValueError(
            "no calibration sample has a token to predict, which token-gradient weights need; "
            "give samples with answers or use uniform weights"
        )
    weights = {}
    for prompt in prompts:
        of_prompt = norms.get(prompt, [torch.zeros(len(prompt))] * len(means))
        blocks = [
            floor + (1 - floor) * norm / mean for norm, mean in zip(of_prompt, means, strict=True)
        ]
        weights[prompt] = [*blocks[:-1], blocks[-2]] if len(blocks) > 1 else blocks
    return weights
