"""Tune the rounding of a block whose layers are solved, while its samples are in front of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...calib.sequential import CalibrationBlock
from ..plan.plan import PlanRow
from ..recipe.scheme import QuantScheme
from ..recover.blocks.rounded_linear import RoundedLinear
from ..recover.blocks.tuning import BlockTuner, Tuned
from ..runtime.unpacked_linear import UnpackedLinear
from ..targets import put_module

if TYPE_CHECKING:
    from .layer_solver import QuantizationRun


@dataclass(frozen=True)
class TunedBlock:
    """The record of a tuned block."""

    block: str
    layers: int
    tuned: Tuned

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON."""
        return {"block": self.block, "layers": self.layers, **self.tuned.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TunedBlock:
        """Undo `to_dict`."""
        values = dict(data)
        return cls(values.pop("block"), values.pop("layers"), Tuned(**values))


def can_tune(row: PlanRow) -> bool:
    """Whether the rounding of a layer can be tuned: integers without a mask, and no expert."""
    step = row.step
    if step is None or step.mask is not None or row.spec.expert is not None:
        return False
    return step.scheme.kind == QuantScheme.kind


def tune_block(run: QuantizationRun, block: CalibrationBlock) -> TunedBlock | None:
    """Tune the solved layers of a block and put the results into the model.

    Args:
        run: whose layers in `solved` belong to the block.
        block: loaded, with its float copy.

    Returns:
        None if no layer of the block can be tuned.
    """
    options = run.recipe.recover
    assert options is not None
    rows = [run.rows[name] for name in run.solved if can_tune(run.rows[name])]
    before: dict[str, UnpackedLinear] = {}
    tuned: dict[str, RoundedLinear] = {}
    originals = block.float_weights([row.spec for row in rows])
    for row, original in zip(rows, originals, strict=True):
        layer = run.model.get_submodule(row.name)
        assert isinstance(layer, UnpackedLinear)
        if layer.group_index is None:
            before[row.name] = layer
            tuned[row.name] = RoundedLinear(layer.quantized(), original, layer.bias, layer.adapter)
            put_module(run.model, row.name, tuned[row.name])
    if not tuned:
        return None
    block.store_float_outputs()
    seed = run.recipe.calibration.seed + len(run.layer_reports)
    run.show_progress(f"{block.path} rounding")
    result = BlockTuner(
        tuned,
        block.samples,
        run=block.output,
        target=block.float_output,
        weights=block.token_weights,
        options=options,
        seed=seed,
    ).tune()
    block.drop_float_outputs()
    for name, layer in tuned.items():
        solved = UnpackedLinear(layer.quantized(), before[name].bias, run.model.dtype)
        solved.adapter = before[name].adapter
        put_module(run.model, name, solved)
        run.solved[name] = solved
    run.show_progress(f"{block.path} rounding, loss {result.start:.3g} to {result.best:.3g}")
    return TunedBlock(block.path, len(tuned), result)
