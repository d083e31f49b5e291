"""Estimate the peak memory of a quantization from shapes, before anything runs."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from ...calib.observers import BATCH_TOKENS
from ...model.config import ModelConfig
from ...model.families import LinearSpec
from ..methods.gptq import CHUNK_ELEMENTS, PANEL
from ..recipe.recipe import Recipe
from ..recipe.steps import Step


@dataclass(frozen=True)
class MemoryEstimate:
    """Parts of the peak memory, in bytes, without Python and its libraries."""

    block: int
    """Weights of the largest module that is loaded at once: a block, or the embedding."""
    solve: int
    """Hessians, factor and working copies of the largest layer; with gptaq also the float copy of
    the largest block."""
    patches_per_token: int
    """Image patches, per calibration token of an image."""
    states_per_token: int
    """Input activations of a block, per calibration token of an image. All are in files; a part is
    cached in memory."""
    inner_per_token: int = 0
    """Input activations of a decoder block's last layer, per calibration token."""
    whole: int = 0
    """All float weights, while gradient token weights are computed; 0 without them."""
    gradient_per_token: int = 0
    """Activations of the whole decoder for a backward pass, per token of the longest sample."""

    def peak(self, tokens: int, longest: int, budget: int) -> int:
        """Estimate the peak memory in bytes.

        Args:
            tokens: number of tokens of all calibration samples.
            longest: number of tokens of the longest sample.
            budget: bytes of activations that may be cached in memory.
        """
        states = self.states_per_token * (tokens + longest) + self.inner_per_token * tokens
        cached = min(states, budget)
        streamed = self.block + self.solve + cached
        return self.patches_per_token * tokens + max(
            streamed, self.whole + self.gradient_per_token * longest
        )

    def scratch(self, tokens: int) -> int:
        """Estimate the bytes of activation files: inputs and outputs of a block, and within it."""
        return (2 * self.states_per_token + self.inner_per_token) * tokens

    def to_dict(self) -> dict[str, int]:
        """Convert to plain data for JSON."""
        return asdict(self)


def count_memory(
    config: ModelConfig,
    layers: Iterable[tuple[LinearSpec, Step | None]],
    weights: int,
    itemsize: int,
    recipe: Recipe,
) -> MemoryEstimate:
    """Count the parts of the peak memory.

    Args:
        config: of the padded model.
        layers: every linear layer with the step that quantizes it; None = not quantized.
        weights: bytes of the model in float.
        itemsize: bytes of a float of the model.
        recipe: the recipe.
    """
    solve, asymmetric = 0, False
    blocks = dict[tuple[str, int], int]()
    inputs = dict[tuple[str, int], dict[str, int]]()
    for spec, step in layers:
        if spec.stage != "head" or step is not None:  # a float head is never loaded
            block = spec.stage, spec.block
            blocks[block] = blocks.get(block, 0) + itemsize * spec.weights
        if step is not None:
            asymmetric = asymmetric or step.asymmetric_calibration
            solve = max(solve, _solving_bytes(spec, step, recipe))
            taps = inputs.setdefault((spec.stage, spec.block), {})
            taps[spec.tap] = max(taps.get(spec.tap, 0), _observing_bytes(spec, step))
    if recipe.needs_calibration and inputs:
        if recipe.calibration.true_sequential:
            solve = max(solve, *(max(taps.values()) for taps in inputs.values()))
        else:  # all inputs of a block are observed in one pass, and one Hessian per input remains
            together = max(sum(taps.values()) for taps in inputs.values())
            solve = max(together, solve + together * 2 // 5)
    if asymmetric:
        solve += max(blocks.values())
    text, vision = config.text, config.vision
    embedding = itemsize * text.vocab_size * text.hidden_size if recipe.needs_calibration else 0
    # A hidden state, one cosine and one sine per rotary pair.
    seen = vision.merge_unit * (itemsize * vision.hidden_size + 4 * vision.head_dim)
    read = itemsize * (text.hidden_size + text.head_dim)
    # The float path has its own hidden states.
    if asymmetric:
        seen += vision.merge_unit * (itemsize * vision.hidden_size + 4 * vision.head_dim)
        read += itemsize * (text.hidden_size + text.head_dim)
    patches = 4 * vision.merge_unit * vision.patch_dim  # float32; prompts hold them all the time
    calibrated = recipe.needs_calibration
    return MemoryEstimate(
        max(embedding, *blocks.values()),
        solve,
        patches if calibrated else 0,
        max(seen, read) if calibrated else 0,
        itemsize * (text.hidden_size + text.intermediate_size) if calibrated else 0,
        weights if recipe.needs_gradient else 0,
        _gradient_bytes(config, itemsize) if recipe.needs_gradient else 0,
    )


def _observing_bytes(spec: LinearSpec, step: Step) -> int:
    """Count the bytes of the statistics of one input while samples run.

    One chunk's Hessian is being summed while three others are pending, each packed to half its size
    (`reduction.py`); cross moments are not packed, but have at most half as many rows as columns
    if they are those of outputs. The tokens of a batched product exist three times: as collected,
    concatenated, and transposed.
    """
    hessians = 4 * spec.in_features**2 * 5 // 2
    tokens = 3 * 2 * BATCH_TOKENS * spec.in_features
    return hessians + tokens + (16 * spec.in_features**2 if step.asymmetric_calibration else 0)


def _solving_bytes(spec: LinearSpec, step: Step, recipe: Recipe) -> int:
    """Count the bytes of solving one layer, without its float weight; fitted to measurements."""
    if step.solves:
        # The Hessian and its factor in float32; the weight, its working copy and a transposed one
        # in float32, and three copies of the integers; the chunks of `gptq` and its panel.
        panel = min(PANEL, spec.in_features) * (spec.in_features + spec.out_features)
        parts = 5 * 4 * min(CHUNK_ELEMENTS, spec.weights) + 4 * panel
        # With gptaq the cross moment and the target are there as well.
        cross = 4 * spec.in_features**2 + 4 * spec.weights if step.asymmetric_calibration else 0
        return 8 * spec.in_features**2 + 15 * spec.weights + parts + cross
    if recipe.needs_calibration:
        # The Hessian; the weight, its scaled copy, the candidate and their products with it.
        return 4 * (spec.in_features**2 + 5 * spec.weights)
    return 15 * spec.weights


def _gradient_bytes(config: ModelConfig, itemsize: int) -> int:
    """Count the bytes per token of a backward pass through the decoder, without weight gradients.

    Counted from the tensors that autograd saves: the inputs of both norms in float32, four tensors
    of the hidden width and three of the inner width; and the gradient of each block's output. The
    logits, for the tokens of the answer only, are not included.
    """
    text = config.text
    block = text.hidden_size * (8 + 5 * itemsize) + 3 * itemsize * text.intermediate_size
    return text.num_hidden_layers * block
