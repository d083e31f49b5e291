"""Sensitivity of the model's predictions to errors at the outputs of its layers.

For a small change d of a layer's output, the divergence KL(model || changed model) of the predicted
tokens is `1/2 d F d'` with the Fisher matrix F of the output. With the logits' own Fisher matrix,
`diag(p) - p p'` for probabilities p, and the Jacobian J of the logits, `F = J' (diag(p) - p p') J`.
For a random vector r of independent standard normal numbers, `u = sqrt(p) r - p (sqrt(p) r')` has
the covariance `diag(p) - p p'`, so that the gradient g of `logits u'` has the second moment F: one
backward pass per sample gives an unbiased estimate of F at every layer at once. Labels drawn from p
would give the same mean, but most of them are the most probable token, whose gradient is small.

Only the diagonal is kept, as two sums of `g^2`: over tokens for every output, and over outputs for
every token. Their product is the estimate of a single `g^2` (the factors of K-FAC, Martens and
Grosse, arXiv 1503.05671, section 3, with a diagonal second factor).

The pass runs the whole model at once, like `gradients`, and the vision tower too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..model.expert_linear import routed_tokens
from ..model.families import LinearSpec
from ..model.processing.inputs import Prompt
from ..model.qwen_vl import QwenVL
from .gradients import predicted_tokens

Progress = Callable[[int, int, str], None]


@dataclass
class OutputSensitivity:
    """Sums of squared gradients at the output of a layer, in nats per squared unit of the output.

    Letters: N outputs, T tokens of a sample that the layer computes.
    """

    outputs: Tensor
    """float32 `[N]`: over all tokens of all samples."""
    tokens: dict[int, Tensor] = field(default_factory=dict)
    """float32 `[T]` by number of the sample: over the outputs. The tokens are those of the block's
    input; those that do not reach the layer have 0."""


@dataclass(frozen=True)
class Sensitivities:
    """Sensitivities of the layers of a model over some samples."""

    layers: dict[str, OutputSensitivity]
    """By name of the layer."""
    predicted: int
    """Number of predicted tokens: sums divided by it are per predicted token."""


def fisher_vector(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw vectors whose covariance is the Fisher matrix of the logits.

    Args:
        logits: `[positions, vocab]`, any float dtype.
        generator: of random numbers on the CPU, so that draws are the same on all devices.

    Returns:
        float32 `[positions, vocab]`; the rows add up to 0.
    """
    p = logits.detach().float().softmax(-1)
    r = torch.randn(p.shape, generator=generator).to(p.device) * p.sqrt()
    return r - p * r.sum(-1, keepdim=True)


def output_sensitivities(
    model: QwenVL,
    prompts: Sequence[Prompt],
    layers: Sequence[LinearSpec],
    *,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Sensitivities:
    """Estimate the sensitivities of linear layers and of the token embedding.

    Args:
        model: float model; left unchanged. Its head must be a layer of its own.
        prompts: samples with their answers. Those without a token to predict count for nothing.
        layers: targets in the model, see `Family.targets`.
        seed: of the random vectors.
        on_progress: called with the number of finished samples, their total and an empty string.

    Raises:
        ValueError: no prompt has a token to predict.
    """
    generator = torch.Generator().manual_seed(seed)
    sums = {
        spec.name: OutputSensitivity(
            torch.zeros(_width(spec), dtype=torch.float32, device=model.device)
        )
        for spec in layers
    }
    predicted = 0
    with _frozen(model):
        for number, prompt in enumerate(prompts):
            count = predicted_tokens(prompt, model.config)
            if count:
                with _observing(model, layers, sums, number, len(prompt), count):
                    _backward(model, prompt, count, generator)
            predicted += count
            if on_progress is not None:
                on_progress(number + 1, len(prompts), "")
    if not predicted:
        raise ValueError(
            "no calibration sample has a token to predict, which sensitivities need; give samples "
            "with answers"
        )
    return Sensitivities(sums, predicted)


def _width(spec: LinearSpec) -> int:
    """Return the number of outputs: the row that the embedding looks up has its input width."""
    return spec.in_features if spec.part == "embedding" else spec.out_features


def _backward(model: QwenVL, prompt: Prompt, count: int, generator: torch.Generator) -> None:
    """Run a sample through the model, and a random vector of its logits back."""
    with torch.enable_grad():
        batch = model.embed([prompt])
        hidden = model.model(batch.embeds, batch.position_ids, added=batch.added)
        logits = model.logits(hidden[0, -count - 1 : -1])
        loss = (logits * fisher_vector(logits, generator)).sum()
        torch.autograd.backward(loss)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Compute no gradients of parameters inside the `with` block."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def _observing(
    model: QwenVL,
    layers: Sequence[LinearSpec],
    sums: dict[str, OutputSensitivity],
    sample: int,
    length: int,
    count: int,
) -> Iterator[None]:
    """Add the squared gradients at the outputs of layers to their sums inside the `with` block."""
    with ExitStack() as handles:
        for spec in layers:
            # The head computes only the positions that predict.
            first = length - count - 1 if spec.part == "head" else 0
            hook = _hook(sums[spec.name], sample, spec, length, first)
            handle = model.get_submodule(spec.name).register_forward_hook(hook)
            handles.callback(handle.remove)
        yield


def _hook(
    total: OutputSensitivity, sample: int, spec: LinearSpec, length: int, first: int
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    """Return a forward hook that adds the squared gradient at the output to a sum."""

    def forward(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if not output.requires_grad:  # nothing before it in the graph needs a gradient
            output = output.detach().requires_grad_()
        routed, count = routed_tokens(), len(output.flatten(0, -2))
        known = total.tokens.get(sample, torch.zeros(0))
        if routed is not None or spec.part == "head":
            rows = torch.arange(first, first + count) if routed is None else routed.cpu()
            known = known if len(known) else torch.zeros(length)
        else:  # of many visuals, the tower computes some in each call
            rows = torch.arange(len(known), len(known) + count)
            known = torch.cat([known, torch.zeros(count)])
        total.tokens[sample] = known

        def backward(gradient: Tensor) -> None:
            squares = gradient.detach().flatten(0, -2).float().square()
            total.outputs += squares.sum(0)
            total.tokens[sample].index_add_(0, rows, squares.sum(1).cpu())

        output.register_hook(backward)  # type: ignore[no-untyped-call]
        return output

    return forward
