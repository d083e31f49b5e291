"""Estimate the peak memory of a quantization from shapes, before anything runs."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass

from ...calib.statistics import Statistic
from ...calib.tap_groups import Needs, group_by_input, group_bytes, observation_passes
from ...model.config import ModelConfig, TextConfig
from ...model.families import CARRIED_PARTS, LinearSpec, family_of
from ..recipe.recipe import Recipe
from ..steps.adapter import solving_memory
from ..steps.step import Step


@dataclass(frozen=True)
class MemoryEstimate:
    """Parts of the peak memory, in bytes, without Python and its libraries."""

    block: int
    """Weights of the largest module that is loaded at once: a block, or the embedding."""
    solve: int
    """Hessians, factor and working copies of the largest layer, and what the solved experts of a
    layer add to their float weights; with statistics of the float model also the float copy of the
    largest block."""
    patches_per_token: int
    """Image patches, per calibration token of an image."""
    states_per_token: int
    """Input activations of a block, per calibration token of an image. All are in files; a part is
    cached in memory."""
    inner_per_token: int = 0
    """Input activations of the last layer of a decoder block that calibration resumes at, per
    calibration token."""
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
        layers: every linear layer with the step that quantizes it, None = not quantized; and the
            token embedding if it is quantized.
        weights: bytes of the model in float.
        itemsize: bytes of a float of the model.
        recipe: the recipe.
    """
    solve, with_float, embedded = 0, False, recipe.needs_calibration
    blocks, targets = dict[tuple[str, int], int](), dict[tuple[str, int], list[LinearSpec]]()
    needs = dict[str, Collection[Statistic]]()
    levels, tensors = dict[tuple[str, int], int](), dict[str, int]()
    for spec, step in layers:
        if spec.part == "embedding":
            embedded = True
            if step is not None:
                size = spec.in_features, spec.out_features
                solve = max(solve, solving_memory(step, *size, calibrated=False))
            continue
        if spec.part in CARRIED_PARTS and step is None:  # copied from file to file
            continue
        block = spec.stage, spec.block
        if spec.part != "head" or step is not None:  # a float head is never loaded
            blocks[block] = blocks.get(block, 0) + itemsize * spec.weights
        if step is not None:
            with_float = with_float or step.uses_float_model
            size = spec.in_features, spec.out_features
            calibrated = recipe.needs_calibration and spec.part != "mtp"
            solve = max(solve, solving_memory(step, *size, calibrated=calibrated))
            if calibrated:
                targets.setdefault(block, []).append(spec)
            needs[spec.name] = step.statistics
            if spec.slice is not None:
                tensor = spec.slice.tensor
                levels[block] = levels.get(block, 0) + spec.weights  # one byte each
                tensors[tensor] = tensors.get(tensor, 0) + itemsize * spec.weights
    if recipe.needs_calibration:
        solve = max(solve, *(_pass_bytes(of, needs, recipe, solve) for of in targets.values()))
    # The tensor of all experts stays until the last of them is solved, beside their dequantized
    # weights.
    solve += max(levels.values(), default=0) + max(tensors.values(), default=0)
    if with_float:
        solve += max(blocks.values())
    text, vision = config.text, config.vision
    embedding = itemsize * text.vocab_size * text.hidden_size if embedded else 0
    # A hidden state, one cosine and one sine per rotary pair; further features of a visual are
    # hidden states too.
    features = len(family_of(config).features(config))
    seen = vision.merge_unit * (itemsize * vision.hidden_size * features + 4 * vision.head_dim)
    read = itemsize * (text.hidden_size * features + text.head_dim)
    # The float path has its own hidden states.
    if with_float:
        seen, read = 2 * seen, 2 * read
    patches = 4 * vision.merge_unit * vision.patch_dim  # float32; prompts hold them all the time
    calibrated = recipe.needs_calibration
    return MemoryEstimate(
        max(embedding, *blocks.values()),
        solve,
        patches if calibrated else 0,
        max(seen, read) if calibrated else 0,
        itemsize * (text.hidden_size + _kept_width(text)) if calibrated else 0,
        weights if recipe.needs_gradient else 0,
        _gradient_bytes(config, itemsize) if recipe.needs_gradient else 0,
    )


def _kept_width(text: TextConfig) -> int:
    """Return the width of the last state within a decoder block that is stored for every token."""
    if text.experts is None:
        return text.intermediate_size
    linear = text.linear_attention.value_width if text.linear_attention else 0
    return max(text.num_attention_heads * text.head_dim, linear)  # experts' taps are not resumed


def _pass_bytes(
    targets: Sequence[LinearSpec],
    needs: Needs,
    recipe: Recipe,
    solve: int,
) -> int:
    """Count the bytes of the statistics of the largest pass over a block, and of solving with them.

    Args:
        targets: in one block.
        needs: statistics besides the Hessian, by target.
        recipe: the recipe.
        solve: bytes of solving a layer.
    """
    groups = group_by_input(targets)
    most = 0
    for of_pass in observation_passes(
        groups, needs, true_sequential=recipe.calibration.true_sequential
    ):
        observing = sum(group_bytes(group, needs) for group in of_pass)
        # One Hessian per input remains while the layers are solved.
        remaining = observing * 2 // 5 if len(of_pass) > 1 else 0
        most = max(most, observing, solve + remaining)
    return most


def _gradient_bytes(config: ModelConfig, itemsize: int) -> int:
    """Count the bytes per token of a backward pass through the decoder, without weight gradients.

    Counted from the tensors that autograd saves: the inputs of both norms in float32, four tensors
    of the hidden width and three of the inner width; and the gradient of each block's output. The
    logits, for the tokens of the answer only, are not included.
    """
    text = config.text
    inner = text.active_intermediate_size
    block = text.hidden_size * (8 + 5 * itemsize) + 3 * itemsize * inner
    return text.num_hidden_layers * block
