"""Groups of a compressed-tensors configuration whose weights are floats of 8 or 4 bits.

Fields and values are those of the library's presets (`quantization/quant_scheme.py`): FP8,
FP8_DYNAMIC, FP8_BLOCK, NVFP4, NVFP4A16, MXFP4, MXFP4A16.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, model_validator

from .....common.validation import Allowed, Integer, empty_to_none
from ....recipe.scheme import Activations, Scheme, TableScheme
from .group import Group

NVFP4, MXFP4, FP8 = "nvfp4", "mxfp4", "fp8"
_SCALE_DTYPES = {"e4m3": "torch.float8_e4m3fn", "e8m0": "torch.uint8"}
BLOCKS = "two whole numbers, at least 1"

_GRIDS = {
    (8, "channel"): FP8,
    (8, "tensor"): FP8,
    (8, "block"): FP8,
    (4, "tensor_group"): NVFP4,
    (4, "group"): MXFP4,
}
"""Grid by bits and strategy."""
_INPUTS: dict[tuple[str, bool], tuple[tuple[int, str, bool | str, Activations], ...]] = {
    (FP8, False): ((8, "token", True, "dynamic"), (8, "tensor", False, "static")),
    (FP8, True): ((8, "group", True, "dynamic"),),
    (NVFP4, False): ((4, "tensor_group", "local", "dynamic"),),
    (MXFP4, False): ((4, "group", True, "dynamic"),),
}
"""Bits, strategy and `dynamic` of inputs, and the scheme's name for them, by grid and blocks."""


class FloatWeightArgs(BaseModel):
    """`weights` of a group: floats."""

    num_bits: Literal[8, 4] = 8
    type: Literal["float"]
    symmetric: Annotated[Literal[True], BeforeValidator(bool), Allowed("true")] = True
    strategy: Literal["channel", "tensor", "block", "group", "tensor_group"]
    group_size: Any = None
    block_structure: Annotated[
        tuple[Annotated[int, Integer(1)], Annotated[int, Integer(1)]] | None, Allowed(BLOCKS)
    ] = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.num_bits, self.strategy) not in _GRIDS:
            pairs = ", ".join(f"{strategy} with {bits} bits" for bits, strategy in _GRIDS)
            raise ValueError(
                f"strategy is {self.strategy} with {self.num_bits} bits; allowed: {pairs}"
            )
        if (self.strategy == "block") != (self.block_structure is not None):
            raise ValueError(
                f"block_structure is {self.block_structure} with strategy {self.strategy}; "
                f"allowed: {BLOCKS}, with strategy block only"
            )
        return self


class FloatInputArgs(BaseModel):
    """`input_activations` of a group: floats."""

    num_bits: Literal[8, 4] = 8
    type: Literal["float"]
    symmetric: Annotated[Literal[True], BeforeValidator(bool), Allowed("true")] = True
    strategy: str | None = None
    group_size: Any = None
    dynamic: bool | Literal["local"] = False


class FloatGroup(Group):
    """A group with weights of floats."""

    weights: FloatWeightArgs
    input_activations: Annotated[FloatInputArgs | None, BeforeValidator(empty_to_none)] = None

    scheme_type: ClassVar[type[Scheme]] = TableScheme

    def values(self) -> dict[str, Any]:
        """See `Group.values`; activations must be those that engines combine with the weights."""
        weights = self.weights
        grid = _GRIDS[weights.num_bits, weights.strategy]
        rows, size = weights.block_structure or (1, None)
        if size is None:
            size = weights.group_size if "group" in weights.strategy else -1
        values = {"grid": grid, "group_size": size, "scale_rows": rows}
        return values | {"activations": self._activations(grid, size)}

    def _activations(self, grid: str, size: int) -> Activations:
        inputs = self.input_activations
        if inputs is None:
            return "none"
        allowed = _INPUTS[grid, self.weights.strategy == "block"]
        for bits, strategy, dynamic, name in allowed:
            same = (inputs.num_bits, inputs.strategy, inputs.dynamic) == (bits, strategy, dynamic)
            if same and ("group" not in strategy or inputs.group_size == size):
                return name
        texts = [f"{bits} bits, {strategy}, dynamic {dyn}" for bits, strategy, dyn, _ in allowed]
        raise ValueError(
            f"input_activations has {inputs.num_bits} bits, {inputs.strategy}, dynamic "
            f"{inputs.dynamic}, group_size {inputs.group_size}; allowed with {grid} weights: "
            f"{' or '.join(texts)}, in groups of the weight"
        )


def weight_args(scheme: TableScheme) -> dict[str, Any]:
    """Return `weights` of a scheme's group."""
    strategy = {"float": "channel", "e4m3": "tensor_group", "e8m0": "group"}
    form = scheme.table.scale_form
    args: dict[str, Any] = {
        "num_bits": scheme.bits,
        "type": "float",
        "symmetric": True,
        "strategy": strategy[form],
        "group_size": None if form == "float" else scheme.group_size,
        "dynamic": False,
    }
    if scheme.scale_rows > 1:
        args["strategy"] = "block"
        args["block_structure"] = [scheme.scale_rows, scheme.group_size]
    return args | _scale_dtype(form)


def input_args(scheme: TableScheme) -> dict[str, Any] | None:
    """Return `input_activations` of a scheme's group."""
    if scheme.activations == "none":
        return None
    for bits, strategy, dynamic, name in _INPUTS[scheme.grid, scheme.scale_rows > 1]:
        if name == scheme.activations:
            return {
                "num_bits": bits,
                "type": "float",
                "symmetric": True,
                "strategy": strategy,
                "group_size": scheme.group_size if "group" in strategy else None,
                "dynamic": dynamic,
            } | _scale_dtype(scheme.table.scale_form)
    raise AssertionError(f"{scheme.label}: activations without a form in the configuration")


def _scale_dtype(form: str) -> dict[str, str]:
    return {"scale_dtype": _SCALE_DTYPES[form]} if form in _SCALE_DTYPES else {}
