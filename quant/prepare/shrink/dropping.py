"""Write a checkpoint with fewer decoder layers; the others are renumbered."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ....calib.block_runner import CompareStates
from ....calib.sequential import CalibrationBlock
from ....common.lazy_tensor import LazyTensor, TensorLike
from ....model.checkpoint import CheckpointReader
from ....model.config import ModelConfig
from ....model.families import family_of
from ...methods.shrink.depth import cosine_sum, drop_layers, random_scores
from ...steps.shrink import ShrinkStep
from ..context import Context
from ..rewriting import rewrite_checkpoint
from .layers import check_layers, layer_period, new_name, protected_layers, shallower_config
from .sample_pass import SamplePass


def drop_from_checkpoint(
    source: Path, destination: Path, step: ShrinkStep, context: Context
) -> dict[str, Any]:
    """Write the checkpoint with fewer layers, see `Preparation.prepare`.

    Returns:
        The dropped layers, and the influence of every layer if it was measured.
    """
    config = ModelConfig.from_folder(source)
    check_layers(config, step)
    count, record = config.text.num_hidden_layers, dict[str, Any]()
    dropped = list(step.drop_layers or ())
    if step.layers is not None:
        if step.score == "random":
            assert step.seed is not None
            scores = random_scores(count, step.seed)
        else:
            scores = block_influence(source, destination.parent, context)
            record["influence"] = scores
        dropped = drop_layers(
            scores,
            count - step.layers,
            stays=protected_layers(config),
            period=layer_period(config),
        )

    def change(name: str, tensor: LazyTensor) -> Mapping[str, TensorLike]:
        new = new_name(name, config, dropped)
        return {} if new is None else {new: tensor}

    raw = shallower_config(config, dropped).raw
    rewrite_checkpoint(
        CheckpointReader(source), destination, change, config=raw, update=context.update
    )
    return {"dropped": sorted(dropped), **record}


def block_influence(source: Path, scratch: Path, context: Context) -> list[float]:
    """Measure the influence of every decoder layer, see `methods/shrink/depth.py`.

    Args:
        source: folder of the float checkpoint.
        scratch: existing folder; a folder for activations is made in it, and removed.
        context: samples and settings.

    Raises:
        ValueError: see `SamplePass`, or a hidden state is not finite.
    """
    samples = SamplePass.open(source, context)
    config = samples.model.config
    decoder = family_of(config).decoder
    paths = decoder.blocks(config)
    sums: dict[str, list[tuple[float, float]]] = {path: [] for path in paths}

    def comparing(path: str) -> CompareStates | None:
        def compare(sample: int, before: Tensor, after: Tensor) -> None:
            weights = samples.token_weights(path, samples.prompts[sample])
            sums[path].append(cosine_sum(before, after, weights))

        return compare if path in sums else None

    # Any layer of a block makes the pass reach it; no input is observed.
    specs = {(s.stage, s.block): s for s in family_of(config).linears(config)}
    targets = [spec for (stage, _), spec in specs.items() if stage == decoder.name]

    def visit(block: CalibrationBlock) -> None:
        context.update(sum(map(bool, sums.values())), len(paths), block.path)

    with tempfile.TemporaryDirectory(dir=scratch, prefix=".shrink-") as folder:
        samples.run(targets, Path(folder) / "states", visit, comparing)
    totals = {path: math.fsum(weight for _, weight in sums[path]) for path in paths}
    if not all(totals.values()):
        raise ValueError("all calibration tokens have weight 0; change token_weights or samples")
    influence = [1 - math.fsum(cosine for cosine, _ in sums[path]) / totals[path] for path in paths]
    if not all(map(math.isfinite, influence)):
        worst = paths[[math.isfinite(value) for value in influence].index(False)]
        raise ValueError(
            f"the hidden states of {worst} are not finite for a calibration sample; calibrate in "
            "bf16 or fp32, or look at the samples"
        )
    return influence
