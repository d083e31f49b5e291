"""What quantizing will hold in memory, counted from shapes before anything runs."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from ...calib.observers import BATCH_TOKENS
from ...model.config import ModelConfig
from ...model.families import LinearSpec
from ..methods.gptq import PANEL, VALUES_AT_ONCE
from ..recipe.recipe import Recipe
from ..recipe.steps import Step


@dataclass(frozen=True)
class MemoryEstimate:
    """What quantizing will hold at its peak, in bytes, beside Python and its libraries."""

    block: int
    """Weights of the largest thing that is read at once: a block, or the embedding."""
    solve: int
    """The largest layer's Hessians, factor and working copies; with gptaq, the float copy of the
    largest block too."""
    patches_per_token: int
    """Patches, for each calibration token of a picture."""
    states_per_token: int
    """Activations in front of a block, for each calibration token of a picture. They lie in files,
    and as far as they may, in memory too."""
    inner_per_token: int = 0
    """Activations in front of a decoder block's last layer, which wait while it is solved."""
    whole: int = 0
    """All weights in float, while gradient token weights are found; 0 if none are asked for."""
    gradient_per_token: int = 0
    """Activations of the whole decoder, for each token of the longest sample, at that time."""

    def peak(self, tokens: int, longest: int, budget: int) -> int:
        """Most that is held at once.

        Args:
            tokens: of all calibration samples.
            longest: of the longest one.
            budget: bytes of activations that may be in memory.
        """
        states = self.states_per_token * (tokens + longest) + self.inner_per_token * tokens
        kept = min(states, budget)
        streamed = self.block + self.solve + kept
        return self.patches_per_token * tokens + max(
            streamed, self.whole + self.gradient_per_token * longest
        )

    def scratch(self, tokens: int) -> int:
        """Bytes of files that activations need: in front of a block, within it and behind it."""
        return (2 * self.states_per_token + self.inner_per_token) * tokens

    def to_dict(self) -> dict[str, int]:
        """Plain data for JSON."""
        return asdict(self)


def count_memory(
    config: ModelConfig,
    layers: Iterable[tuple[LinearSpec, Step | None]],
    weights: int,
    itemsize: int,
    recipe: Recipe,
) -> MemoryEstimate:
    """Count what quantizing holds at its peak.

    Args:
        config: the model as it will be, padded.
        layers: every linear layer with the step that quantizes it; None = kept.
        weights: bytes of the model in float.
        itemsize: bytes of a float of the model.
        recipe: what is to be done.
    """
    solve, asymmetric = 0, False
    blocks = dict[tuple[str, int], int]()
    inputs = dict[tuple[str, int], dict[str, int]]()
    for spec, step in layers:
        if spec.stage != "head" or step is not None:  # a head that is kept is never read
            block = spec.stage, spec.block
            blocks[block] = blocks.get(block, 0) + itemsize * spec.weights
        if step is not None:
            asymmetric = asymmetric or step.asymmetric
            solve = max(solve, _solving_bytes(spec, step, recipe))
            taps = inputs.setdefault((spec.stage, spec.block), {})
            taps[spec.tap] = max(taps.get(spec.tap, 0), _observing_bytes(spec, step))
    if recipe.needs_calibration and inputs:
        if recipe.calibration.true_sequential:
            solve = max(solve, *(max(taps.values()) for taps in inputs.values()))
        else:  # a block's inputs are all observed at once, and wait for each other
            together = max(sum(taps.values()) for taps in inputs.values())
            solve = max(together, solve + together * 2 // 5)
    if asymmetric:
        solve += max(blocks.values())
    text, vision = config.text, config.vision
    embedding = itemsize * text.vocab_size * text.hidden_size if recipe.needs_calibration else 0
    # A hidden state, one cosine and one sine per rotary pair.
    seen = vision.merge_unit * (itemsize * vision.hidden_size + 4 * vision.head_dim)
    read = itemsize * (text.hidden_size + text.head_dim)
    # The float stream has hidden states of its own.
    if asymmetric:
        seen += vision.merge_unit * (itemsize * vision.hidden_size + 4 * vision.head_dim)
        read += itemsize * (text.hidden_size + text.head_dim)
    patches = 4 * vision.merge_unit * vision.patch_dim  # float32, kept by the prompts throughout
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
    """What the statistics of one input take while samples run.

    One chunk's Hessian is at work and those of three are waiting, folded (`reduction.py`). Moments
    are not folded. Tokens that are multiplied together lie there three times: as they came, in a
    row, and transposed.
    """
    hessians = 4 * spec.in_features**2 * 5 // 2
    tokens = 3 * 2 * BATCH_TOKENS * spec.in_features
    return hessians + tokens + (16 * spec.in_features**2 if step.asymmetric else 0)


def _solving_bytes(spec: LinearSpec, step: Step, recipe: Recipe) -> int:
    """What one layer takes beside its float weight, as measured."""
    if step.asymmetric:
        # In float32, and the target takes more than the solver: the Hessian and the moment,
        # three float64 matrices, and the weight and its target in float32 and float64.
        return 4 * (8 * spec.in_features**2 + 8 * spec.weights)
    if step.solves:
        # The Hessian and its factor in float32; the weight, its solving copy and a transposed one
        # in float32, and three copies of the integers; what is measured or corrected in parts.
        panel = min(PANEL, spec.in_features) * (spec.in_features + spec.out_features)
        parts = 5 * 4 * min(VALUES_AT_ONCE, spec.weights) + 4 * panel
        return 8 * spec.in_features**2 + 15 * spec.weights + parts
    if recipe.needs_calibration:
        # The Hessian; the weight, its scaled copy, the candidate and their products with it.
        return 4 * (spec.in_features**2 + 5 * spec.weights)
    return 15 * spec.weights


def _gradient_bytes(config: ModelConfig, itemsize: int) -> int:
    """What a backward pass through the decoder keeps for each token, without gradients of weights.

    As counted on what autograd saves: inputs of both norms in float32, four tensors of the hidden
    width and three of the inner one; and the gradient of each block's output. The scores over the
    vocabulary come on top, for the tokens of the answer only.
    """
    text = config.text
    block = text.hidden_size * (8 + 5 * itemsize) + 3 * itemsize * text.intermediate_size
    return text.num_hidden_layers * block
