"""Making quantized checkpoints, changing their format, and looking into them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..calib.samples.sample import Sample, has_pictures
from ..calib.samples.sample import fingerprint as samples_fingerprint
from ..calib.samples.selection import Draw
from ..common.distributed import SINGLE_PROCESS, Communicator, broadcast_result, rank_zero_first
from ..common.environment import device_name, versions
from ..common.output_dir import claim, claim_result, place
from ..common.progress import Reporter, peak_memory
from ..model.checkpoint import CheckpointReader
from ..model.loading import choose_dtype
from ..model.processing.processor import Processor
from ..model.weight_files import digest_folder
from .checkpoint.export import export_into
from .checkpoint.formats import AUTO, choose_format
from .checkpoint.formats.checkpoint import QuantizedCheckpoint
from .checkpoint.loading import is_quantized, resolve_folder
from .checkpoint.saving import save_finished
from .checkpoint.verify import first_tokens
from .config import BUILTIN_MODELS, Calibration, Settings
from .driver.blockwise import BlockwiseQuantizer
from .driver.journal import NAMES as WORK_NAMES
from .driver.journal import Journal
from .driver.pipeline import check_format
from .plan.plan import Plan, check_images, make_plan
from .plan.time_estimate import estimate_time, probe
from .recipe.recipe import Recipe
from .resolve import Source, encode_samples, open_samples, resolve_recipe

SMOKE_TEST_TOKENS = 2
"""Tokens that a finished checkpoint has to generate; each one reads it once."""
DRAWINGS = (
    "calibrated on built-in drawings, not on samples like those the model will see; "
    "give your own with --calib"
)


TEXT_ALONE = (
    "no calibration sample has an image or video, and the model is quantized for text alone; "
    "give samples with images"
)


def calibration_warnings(name: str, drawn: Draw[Sample], calibration: Calibration) -> list[str]:
    """What must be known about the samples before the result is trusted.

    Args:
        name: of the model.
        drawn: its samples.
        calibration: what was asked for.
    """
    found = []
    if is_foreign_to_drawings(name, drawn, calibration):
        found.append(DRAWINGS)
    if drawn.samples and not any(map(has_pictures, drawn.samples)):
        found.append(TEXT_ALONE)
    return found + [f"calibration sample skipped: {fault}" for fault in drawn.skipped]


def is_foreign_to_drawings(name: str, drawn: Draw[Sample], calibration: Calibration) -> bool:
    """Whether a model that never saw our drawings is calibrated on them."""
    are_drawings = bool(drawn.samples) and calibration.source in (None, "synthetic")
    return are_drawings and name not in BUILTIN_MODELS


@dataclass(frozen=True)
class Job:
    """A checkpoint to be made, with everything that decides its bytes."""

    source: Source
    recipe: Recipe
    plan: Plan
    drawn: Draw[Sample]
    processor: Processor
    calibration: Calibration

    @classmethod
    def prepare(
        cls,
        source: Source,
        recipe_name: str,
        calibration: Calibration,
        format_: str = AUTO,
        tp: int | None = None,
    ) -> Job:
        """Find out all that can be wrong before any work is done.

        Raises:
            FileNotFoundError: the recipe or the calibration source does not exist.
            ValueError: the model is quantized already, or the recipe, the format or the samples
                do not fit.
        """
        if is_quantized(source.folder):
            raise ValueError(f"{source.name}: is quantized already; start from the original model")
        recipe = resolve_recipe(recipe_name, calibration, source.settings, tp)
        plan = make_plan(source.config, recipe, format=format_)
        check_format(plan, format_)
        processor = source.processor()
        drawn = open_samples(recipe, calibration, processor)
        if drawn.samples:
            check_images(plan, present=any(map(has_pictures, drawn.samples)))
        return cls(source, recipe, plan, drawn, processor, calibration)

    @property
    def samples(self) -> list[Sample]:
        """What it is calibrated on."""
        return self.drawn.samples

    @property
    def warnings(self) -> list[str]:
        """See `calibration_warnings`."""
        return calibration_warnings(self.source.name, self.drawn, self.calibration)

    def warn(self, reporter: Reporter) -> None:
        """Show the warnings."""
        for warning in self.warnings:
            reporter.warn(warning)

    def describe_calibration(self) -> dict[str, Any]:
        """What the report says about the samples, as JSON values."""
        foreign = is_foreign_to_drawings(self.source.name, self.drawn, self.calibration)
        return {
            "source": self.calibration.source or "synthetic",
            "samples": len(self.samples),
            "with_images": sum(map(has_pictures, self.samples)),
            "warning": DRAWINGS if foreign else None,
            "warnings": self.warnings,
        }

    def fingerprint(self) -> dict[str, Any]:
        """What the checkpoint depends on, as JSON values."""
        return {
            "model": digest_folder(self.source.folder),
            "recipe": self.recipe.to_dict(),
            "calibration": samples_fingerprint(self.samples),
            "pixels": [self.processor.min_pixels, self.processor.max_pixels],
            "dtype": self.source.settings.dtype,
            "format": self.plan.format,
            "device": device_name(self.source.device),
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }

    def make(
        self,
        out: Path,
        fingerprint: dict[str, Any],
        reporter: Reporter,
        *,
        overwrite: bool = False,
        fresh: bool = False,
        comm: Communicator = SINGLE_PROCESS,
    ) -> None:
        """Quantize and write; ``out`` appears whole, with its fingerprint, or not at all.

        What is done of it waits in a hidden folder beside ``out``, for the same job to go on.
        Several processes share the work; of these, the first one shows and writes.

        Raises:
            ValueError: that folder holds other work and neither flag is given, or the model or the
                samples are unusable.
        """
        if self.plan.passed_over:
            reporter.note(f"writing {self.plan.format}, because {self.plan.passed_over}")
        folder = out.with_name(f".{out.name}.vlpress-work")
        flags = {"overwrite": overwrite, "fresh": fresh}
        if broadcast_result(comm, lambda: claim(folder, fingerprint, ours=WORK_NAMES, **flags)):
            reporter.note(f"going on with what {folder} holds of {out}")
        self.warn(reporter)
        settings = self.source.settings
        streaming = BlockwiseQuantizer(
            self.source.folder,
            self.recipe,
            self.plan,
            encode_samples(self.samples, self.processor),
            settings.device,
            settings.dtype,
            self.calibration.budget,
            comm,
        )
        work = rank_zero_first(comm, lambda: Journal(folder, writes=comm.rank == 0))
        with reporter.stage("quantize") as update:
            report = streaming.quantize(work, update)

        def finish() -> None:
            with place(out, fingerprint) as staged:
                save_finished(work.tensors(), report, self.source.folder, staged)
                with reporter.stage("read back") as update:
                    update(0, SMOKE_TEST_TOKENS, "")
                    said = self.read_back(staged)
                    update(SMOKE_TEST_TOKENS, SMOKE_TEST_TOKENS, "")
            reporter.note(f"read back from its files, the checkpoint begins to answer: {said!r}")
            shutil.rmtree(folder)

        broadcast_result(comm, finish)

    def read_back(self, checkpoint: Path) -> str:
        """Have a finished checkpoint begin an answer to the first sample, or to a plain question.

        Raises:
            ValueError: its files are damaged, or its scores are not finite.
        """
        messages: Sequence[Any] = [{"role": "user", "content": "Which animal barks?"}]
        if self.samples:
            messages = self.samples[0].messages
        tokens = first_tokens(
            checkpoint,
            self.processor.encode(messages),
            SMOKE_TEST_TOKENS,
            stop_ids=self.processor.stop_ids,
            device=self.source.settings.device,
            dtype=self.source.settings.dtype,
        )
        return self.processor.decode(tokens)


def quantize_to(
    out: Path,
    *,
    model: str,
    recipe: str,
    calibration: Calibration,
    settings: Settings,
    format_: str,
    overwrite: bool,
    fresh: bool,
    reporter: Reporter,
    tp: int | None = None,
    comm: Communicator = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Make a checkpoint folder, or find it finished; return what `inspect_checkpoint` says.

    Raises:
        FileNotFoundError: model, recipe or samples do not exist.
        ValueError: something does not fit, or ``out`` holds other work.
    """
    source = rank_zero_first(comm, lambda: Source.find(model, settings))
    job = rank_zero_first(comm, lambda: Job.prepare(source, recipe, calibration, format_, tp))
    fingerprint, flags = (
        broadcast_result(comm, job.fingerprint),
        {"overwrite": overwrite, "fresh": fresh},
    )
    if broadcast_result(comm, lambda: claim_result(out, fingerprint, **flags)):
        reporter.note(f"{out} is finished already")
        job.warn(reporter)
    else:
        job.make(out, fingerprint, reporter, **flags, comm=comm)
    return inspect_checkpoint(out)


def plan_model(
    model: str,
    recipe: str,
    calibration: Calibration,
    settings: Settings,
    tp: int | None = None,
    format_: str = AUTO,
    *,
    reporter: Reporter,
) -> dict[str, Any]:
    """Say what a recipe would do to every linear layer of a model, reading no weights.

    What it will take is counted for the samples that would be drawn; the time is estimated from a
    probe of the device that lasts under a second.

    Raises:
        FileNotFoundError: no such model, recipe or calibration source.
        ValueError: the recipe or a sample does not fit the model.
    """
    source = Source.find(model, settings)
    if is_quantized(source.folder):
        raise ValueError(f"{model}: is quantized already; vlpress inspect shows its layers")
    resolved = resolve_recipe(recipe, calibration, settings, tp)
    kind = choose_dtype(settings.dtype, source.config, CheckpointReader(source.folder))
    plan = make_plan(source.config, resolved, dtype=kind, format=format_)
    check_format(plan, format_)
    process = peak_memory()  # before samples are there, which are counted
    rates = probe(source.device, kind)
    solve, per_token = estimate_time(
        plan,
        rates,
        true_sequential=resolved.calibration.true_sequential,
        gradient=resolved.needs_gradient,
    )
    drawn = open_samples(resolved, calibration, source.processor())
    for warning in calibration_warnings(model, drawn, calibration):
        reporter.warn(warning)
    tokens, longest = sum(drawn.tokens), max(drawn.tokens, default=0)
    return {
        "model": model,
        "recipe": resolved.to_dict(),
        **plan.to_dict(),
        "time": {"solve_seconds": solve, "seconds_per_token": per_token},
        "estimate": {
            "samples": len(drawn.samples),
            "with_images": sum(map(has_pictures, drawn.samples)),
            "tokens": tokens,
            "seconds": solve + per_token * tokens,
            "process_bytes": process,
            "peak_bytes": process + plan.memory.peak(tokens, longest, calibration.budget),
            "scratch_bytes": plan.memory.scratch(tokens) + plan.packed_bytes,
            "output_bytes": plan.candidate_bytes,
        },
    }


def export_to(
    checkpoint: str,
    out: Path,
    format_: str,
    *,
    overwrite: bool,
    fresh: bool,
    reporter: Reporter,
) -> dict[str, Any]:
    """Write a checkpoint in another format, or find it done; return `inspect_checkpoint` of it.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: it is not quantized, the format cannot hold it, or ``out`` holds other work.
    """
    folder = resolve_folder(checkpoint)
    # Before anything is read whole: what can be refused is refused at once.
    chosen = choose_format(QuantizedCheckpoint(folder).contents(), format_)
    made_from = {"checkpoint": digest_folder(folder), "format": chosen.name, "vlpress": __version__}
    if claim_result(out, made_from, overwrite=overwrite, fresh=fresh):
        reporter.note(f"{out} is finished already")
    else:
        with place(out, made_from) as staged:
            export_into(staged, folder, chosen.name)
    return inspect_checkpoint(out)


def inspect_checkpoint(folder: Path) -> dict[str, Any]:
    """Say what is in a quantized checkpoint, layer by layer.

    Checkpoints that vlpress wrote also carry each layer's error and why the others were kept.

    Raises:
        FileNotFoundError: no such folder, or an incomplete one.
        ValueError: it is not quantized, or of an unknown format.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give a quantized checkpoint")
    if not is_quantized(folder):
        raise ValueError(
            f"{folder}: no quantization found in config.json; give a quantized checkpoint"
        )
    found = QuantizedCheckpoint(folder)
    report = found.record or {}
    known = {layer["name"]: layer for layer in report.get("layers", [])}
    contents, reader = found.contents(), found.reader
    layers = [
        {
            "scheme": contents.schemes[name].label,
            **known.get(name, {}),
            "name": name,
            "bits": contents.schemes[name].bits,
            "in_features": spec.in_features,
            "out_features": spec.out_features,
            "bytes": sum(
                _tensor_bytes(reader, f"{name}.{part}") for part in (*found.format.parts, "bias")
            ),
        }
        for name, spec in contents.quantized.items()
    ]
    return {
        "checkpoint": str(folder),
        "format": found.format.name,
        "recipe": report.get("recipe"),
        "calibration": report.get("calibration"),
        "layers": layers,
        "kept": report.get("kept"),
        "bytes": sum(_tensor_bytes(reader, name) for name in reader.names()),
    }


def _tensor_bytes(reader: CheckpointReader, name: str) -> int:
    if name not in reader:
        return 0
    return prod(reader.shape(name)) * reader.dtype(name).itemsize
