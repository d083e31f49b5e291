"""What quantizing will hold in memory, counted from shapes before anything runs."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from ..model.config import ModelConfig
from ..model.families import LinearSpec
from .recipe import Recipe
from .steps import Step


@dataclass(frozen=True)
class Memory:
    """What quantizing will hold at its peak, in bytes."""

    weights: int
    """The model itself."""
    solve: int
    """The largest layer's Hessians, factor and working copies; with gptaq, the float copy of the
    largest block too."""
    per_token: int
    """Patches and activations that wait between blocks, for each calibration token of a picture."""
    gradient_per_token: int = 0
    """Activations of the whole decoder, for each token of the longest sample, while gradient token
    weights are found, which is before anything is solved; 0 if no such weights are asked for."""

    def total(self, tokens: int, longest: int = 0) -> int:
        """Peak for so many calibration tokens in all, so many of them in the longest sample."""
        step = max(self.solve, self.gradient_per_token * longest)
        return self.weights + step + self.per_token * tokens

    def to_dict(self) -> dict[str, int]:
        """Plain data for JSON."""
        return asdict(self)


def count_memory(
    config: ModelConfig,
    layers: Iterable[tuple[LinearSpec, Step | None]],
    weights: int,
    itemsize: int,
    recipe: Recipe,
) -> Memory:
    """Count what quantizing holds at its peak.

    Args:
        config: the model as it will be, padded.
        layers: every linear layer with the step that quantizes it; None = kept.
        weights: bytes of the model in float.
        itemsize: bytes of a float of the model.
        recipe: what is to be done.
    """
    solve, asymmetric = 0, False
    copies = dict[tuple[str, int], int]()
    for spec, step in layers:
        block = spec.stage, spec.block
        copies[block] = copies.get(block, 0) + itemsize * spec.weights
        if step is not None and step.asymmetric:
            asymmetric = True
            # As below, and the moment beside the Hessian and the target beside the weight. (Finding
            # the target takes three float64 matrices beside these two, which is no more.)
            solve = max(solve, 4 * (8 * spec.in_features**2 + 8 * spec.weights))
        elif step is not None and step.solves:
            # float32, as measured: the Hessian, its ordered and damped copies, both factors and
            # what LAPACK copies; the weight, its solving copy, scales and zero points per column,
            # integers and the candidate. (Twice the first part if float32 finds no factor.)
            solve = max(solve, 4 * (7 * spec.in_features**2 + 7 * spec.weights))
        elif step is not None and recipe.needs_calibration:
            # The Hessian; the weight, its scaled copy, the candidate and their products with it.
            solve = max(solve, 4 * (spec.in_features**2 + 5 * spec.weights))
    if asymmetric:
        solve += max(copies.values())
    text, vision = config.text, config.vision
    # Two hidden states (before and after a block), one cosine and one sine per rotary pair.
    seen = vision.merge_unit * (itemsize * 2 * vision.hidden_size + 4 * vision.head_dim)
    read = itemsize * (2 * text.hidden_size + text.head_dim)
    # The float stream has hidden states of its own, and shares the rest.
    if asymmetric:
        seen += vision.merge_unit * itemsize * 2 * vision.hidden_size
        read += itemsize * 2 * text.hidden_size
    patches = 4 * vision.merge_unit * vision.patch_dim  # float32, kept by the prompts throughout
    gradient = _gradient_bytes(config, itemsize) if recipe.needs_gradient else 0
    return Memory(weights, solve, patches + max(seen, read), gradient)


def _gradient_bytes(config: ModelConfig, itemsize: int) -> int:
    """What a backward pass through the decoder keeps for each token, without gradients of weights.

    As counted on what autograd saves: inputs of both norms in float32, four tensors of the hidden
    width and three of the inner one; and the gradient of each block's output. The scores over the
    vocabulary come on top, for the tokens of the answer only.
    """
    text = config.text
    block = text.hidden_size * (8 + 5 * itemsize) + 3 * itemsize * text.intermediate_size
    return text.num_hidden_layers * block
