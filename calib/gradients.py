"""How much the loss minds errors, token by token: one pass back through the float decoder.

The loss is next-token prediction of the answer: what comes before was written by the user and will
never be predicted. A sample without an answer (plain text) is predicted from behind its last
picture on.

This is the one place where the whole decoder runs at once, with the activations that its gradients
need: one sample of them, no gradients of weights.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.config import ModelConfig
from ..model.processing.inputs import Prompt
from ..model.qwen_vl import QwenVL


def predicted_tokens(prompt: Prompt, config: ModelConfig) -> int:
    """How many tokens at the end of a prompt the loss is about; 0 = there is nothing to predict."""
    if prompt.answer_tokens:
        return prompt.answer_tokens
    visual = visual_tokens(prompt, config).nonzero()
    first = int(visual.max()) + 2 if len(visual) else 1
    return max(len(prompt) - first, 0)


def visual_tokens(prompt: Prompt, config: ModelConfig) -> Tensor:
    """Which tokens stand for pictures and videos, bool ``[tokens]``."""
    ids = prompt.input_ids
    return (ids == config.image_token_id) | (ids == config.video_token_id)


def loss_gradients(model: QwenVL, prompt: Prompt) -> list[Tensor]:
    """Gradient of the loss at every decoder block's output, each ``[tokens, hidden]``.

    Args:
        model: in float; left unchanged.
        prompt: with at least one token to predict.
    """
    count = predicted_tokens(prompt, model.config)
    wanted = [p for p in model.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        with torch.no_grad():
            batch = model.embed([prompt])
        with torch.enable_grad():
            state = model.model.prepare(batch.embeds.detach().requires_grad_(), batch.position_ids)
            outputs = []
            for index in range(len(model.model.layers)):
                state = model.model.step(index, state)
                outputs.append(state["hidden"])
            rows = model.model.finish(state)[0, -count - 1 : -1]
            targets = prompt.input_ids[-count:].to(rows.device)
            loss = F.cross_entropy(model.logits(rows), targets, reduction="sum")
            return [gradient[0] for gradient in torch.autograd.grad(loss, outputs)]
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def token_sensitivities(
    model: QwenVL, prompts: Sequence[Prompt], floor: float = 0.1
) -> dict[Prompt, list[Tensor]]:
    """A weight for every token in every decoder block: the norm of its gradient.

    MBQ (Li et al., arXiv 2412.19509, section 4) takes the mean gradient of a modality for its
    weight; here every token has its own, because most of what differs does so inside a modality:
    the tokens of the answer, and the few parts of a picture that it speaks of. The last block's
    gradients know only the tokens that predict, though its keys and values are those of all; it
    takes the weights of the block before.

    Args:
        model: in float; left unchanged.
        prompts: with their answers.
        floor: 0 to 1, share of the mean weight that every token gets, so that no input is left out.

    Returns:
        For each prompt one float32 tensor ``[tokens]`` per decoder block; in each block the
        weights of all tokens of all prompts have mean 1.

    Raises:
        ValueError: no prompt has anything to predict.
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
        found = norms.get(prompt, [torch.zeros(len(prompt))] * len(means))
        blocks = [
            floor + (1 - floor) * norm / mean for norm, mean in zip(found, means, strict=True)
        ]
        weights[prompt] = [*blocks[:-1], blocks[-2]] if len(blocks) > 1 else blocks
    return weights
