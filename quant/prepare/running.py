"""Run the preparations of a recipe one after the other, inside the work folder of a run.

Each writes the folder `prepared/N` with its `checkpoint` and its `record.json`, which appears
complete or not at all. An interrupted run resumes at the first preparation without such a folder;
the checkpoint before the last one is removed as soon as the next is complete.

The work folder belongs to one fingerprint of model, recipe and samples (`claim`), and so do these.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...common.atomic import atomic_folder, write_json
from ...common.json_files import read_json
from ...common.progress import Reporter
from ...model.checkpoint import CheckpointReader
from ...model.config import ModelConfig
from ...model.loading import build_model, check_tensors, parameter_shapes
from ..steps.preparation import Preparation
from .context import Context

FOLDER = "prepared"
"""Name inside the work folder."""
CHECKPOINT, RECORD, DONE = "checkpoint", "record.json", "used"
REMEDY = "begin again with --fresh"


@dataclass(frozen=True)
class Prepared:
    """The float checkpoint that is quantized in the place of the recipe's source."""

    folder: Path
    """Of the checkpoint."""
    records: tuple[Mapping[str, Any], ...]
    """Of all preparations, for `vlpress.json`."""


def prepare_source(source: Path, work: Path, context: Context, reporter: Reporter) -> Prepared:
    """Run the preparations that are not complete yet.

    Args:
        source: folder of the recipe's source.
        work: folder of the run, existing.
        context: with the recipe; its `update` is replaced.
        reporter: shows a stage for each preparation.

    Raises:
        ValueError: a preparation refuses, or a stored record is damaged.
    """
    records, folder = [], source
    for number, preparation in enumerate(context.recipe.preparations):
        done = work / FOLDER / f"{number:02d}"
        if not done.is_dir():
            with reporter.stage(f"{preparation.method}: preparing the checkpoint") as update:
                _prepare(preparation, folder, done, replace(context, update=update))
        if folder != source:
            _remove(folder)
        folder = done / CHECKPOINT
        records.append(dict(read_json(done / RECORD, REMEDY)))
    return Prepared(folder, tuple(records))


def prepare_checkpoint(
    preparation: Preparation, source: Path, out: Path, context: Context
) -> dict[str, Any]:
    """Write the checkpoint of one preparation, atomically; returns its record.

    Raises:
        ValueError: the preparation refuses, or `out` exists.
    """
    with atomic_folder(out) as staged:
        return _write(preparation, source, staged, context)


def _prepare(preparation: Preparation, source: Path, done: Path, context: Context) -> None:
    with atomic_folder(done, exclusive=True) as staged:
        (staged / CHECKPOINT).mkdir()
        record = _write(preparation, source, staged / CHECKPOINT, context)
        write_json(staged / RECORD, record)


def _write(
    preparation: Preparation, source: Path, folder: Path, context: Context
) -> dict[str, Any]:
    """Run a preparation, and check that it wrote the checkpoint that the plan was made for."""
    foreseen = preparation.foresee(ModelConfig.from_folder(source), source).config
    record = {**preparation.to_dict(), **preparation.prepare(source, folder, context)}
    written = ModelConfig.from_folder(folder)
    if parameter_shapes(written) != parameter_shapes(foreseen):
        raise AssertionError(f"{preparation.method} wrote other shapes than it foresaw")
    check_tensors(CheckpointReader(folder), build_model(written))
    return record


def _remove(folder: Path) -> None:
    """Remove a checkpoint; a kill leaves none under its name."""
    if folder.is_dir():
        trash = folder.with_name(DONE)
        shutil.rmtree(trash, ignore_errors=True)
        folder.rename(trash)
        shutil.rmtree(trash)
