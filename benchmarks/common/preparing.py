"""Prepare the float checkpoint of a recipe whose first steps change whole checkpoints."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlpress.calib.samples.sample import Sample
from vlpress.quant.config import ModelSettings
from vlpress.quant.prepare.context import Context
from vlpress.quant.prepare.running import prepare_checkpoint
from vlpress.quant.recipe.recipe import Recipe


def prepare(
    recipe: Recipe, source: Path, out: Path, samples: Sequence[Sample]
) -> tuple[Mapping[str, Any], ...]:
    """Run the preparations of a recipe one after the other; return their records.

    Args:
        recipe: with at least one preparation.
        source: folder of the original checkpoint.
        out: folder of the last prepared one; an existing one is replaced.
        samples: calibration samples.
    """
    context = Context(recipe, samples, ModelSettings(device="cpu"))
    records = []
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        folder = source
        for number, preparation in enumerate(recipe.preparations):
            prepared = Path(scratch) / str(number)
            records.append(prepare_checkpoint(preparation, folder, prepared, context))
            folder = prepared
        shutil.rmtree(out, ignore_errors=True)
        folder.rename(out)
    return tuple(records)
